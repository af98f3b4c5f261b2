#!/bin/bash
# servers.sh start|stop DIR MODEL:PORT...
# Real vLLM servers on loopback for the scripts beside this one, each of a tiny random model
# that is made for it; they outlive this shell. VENV names the environment that vllm/install.sh
# made. In DIR: the models, PORT.log and PORT.pid of each server.
#
#   VENV=~/vllm tests/real/servers.sh start /tmp/real tiny-a:18001 tiny-b:18002
#   VENV=~/vllm tests/real/servers.sh start /tmp/real tiny-a:18003    # a second one of tiny-a
#   tests/real/servers.sh stop /tmp/real tiny-a:18003
#
# Each takes 1 to 1.5 GB of memory and half a minute of one core to start. Every model has the
# alias MODEL-alias.
set -eu
WHAT=${1:?usage: servers.sh start|stop DIR MODEL:PORT...} DIR=${2:?a directory} HERE=$(cd "$(dirname "$0")" && pwd)
shift 2
mkdir -p "$DIR"
for SERVER in "$@"; do
  MODEL=${SERVER%:*} PORT=${SERVER##*:}
  if [ "$WHAT" = stop ]; then
    kill "$(cat "$DIR/$PORT.pid")"
    rm "$DIR/$PORT.pid"
    continue
  fi
  [ -e "$DIR/$MODEL/config.json" ] || "${VENV:?}/bin/python" "$HERE/vllm/make_tiny_model.py" "$MODEL" "$DIR/$MODEL"
  setsid nohup bash "$HERE/vllm/serve.sh" "$DIR/$MODEL" "$MODEL" "$PORT" \
    --served-model-name "$MODEL" "$MODEL-alias" >"$DIR/$PORT.log" 2>&1 </dev/null &
  echo $! >"$DIR/$PORT.pid"
  for _ in $(seq 900); do
    curl -sf -o /dev/null "http://127.0.0.1:$PORT/health" && break
    kill -0 "$(cat "$DIR/$PORT.pid")" || { tail "$DIR/$PORT.log"; exit 1; }
    sleep 0.2
  done
  curl -sf -o /dev/null "http://127.0.0.1:$PORT/health" || { echo "$SERVER does not start, see $DIR/$PORT.log" >&2; exit 1; }
  echo "$SERVER is up, process $(cat "$DIR/$PORT.pid")"
done
