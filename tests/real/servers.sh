#!/bin/bash
# servers.sh start|stop DIR MODEL:PORT[:VARIANT]...
# Starts real vLLM servers of tiny random models on loopback, with the environment that vllm/install.sh
# made. In DIR: the models, an adapter of each (MODEL-lora), PORT.log and PORT.pid of each server.
#
#   VENV=~/vllm tests/real/servers.sh start /tmp/real tiny-a:18001 tiny-b:18002
#   VENV=~/vllm tests/real/servers.sh start /tmp/real tiny-a:18003:full    # another one of tiny-a
#   tests/real/servers.sh stop /tmp/real tiny-a:18003
#
# Variants, that is, which routes there are and how they are reached:
#   plain     what a generate model registers by itself
#   full      also the dev mode's, LoRA, stored responses, scale-out, tokenizer info, the profiler;
#             Cohere's where the `cohere` SDK is found (e.g. by PYTHONPATH)
#   traced    with --enable-request-id-headers
#   keyed     with the key `sk-differential`
#   rooted    with --root-path /p
#   uds       on the Unix socket DIR/PORT.sock instead of a port
#   chats     with the dev mode, which has /reset_prefix_cache, 4,096 tokens of context and a cache
#             of 24,576 tokens, a third of what the chats of hits.py come to at a time
#   embed, classify     a pooling model: embeddings and scores, or classes
#
# Each takes 1 to 1.5 GB of memory and half a minute of one core to start. Every model has the
# alias MODEL-alias.
set -eu
WHAT=${1:?usage: servers.sh start|stop DIR MODEL:PORT[:VARIANT]...} DIR=${2:?a directory} HERE=$(cd "$(dirname "$0")" && pwd)
shift 2
mkdir -p "$DIR"
for SERVER in "$@"; do
  IFS=: read -r MODEL PORT VARIANT <<<"$SERVER"
  if [ "$WHAT" = stop ]; then
    PID=$(cat "$DIR/$PORT.pid")
    kill "$PID"
    # It answers for seconds more: who is started at its port meanwhile would seem to be up.
    while kill -0 "$PID" 2>/dev/null; do sleep 0.2; done
    rm "$DIR/$PORT.pid"
    continue
  fi
  [ -e "$DIR/$MODEL/config.json" ] || "${VENV:?}/bin/python" "$HERE/vllm/make_tiny_model.py" "$MODEL" "$DIR/$MODEL"
  SETTINGS=() OPTIONS=() REACH=()
  case ${VARIANT:=plain} in
    plain) ;;
    full)
      [ -e "$DIR/$MODEL-lora/adapter_config.json" ] ||
        "${VENV:?}/bin/python" "$HERE/lora.py" "$DIR/$MODEL" "$MODEL-lora" "$DIR/$MODEL-lora"
      SETTINGS=(VLLM_SERVER_DEV_MODE=1 VLLM_ENABLE_RESPONSES_API_STORE=1 VLLM_ALLOW_RUNTIME_LORA_UPDATING=1
        VLLM_ENABLE_COHERE_API=1)
      OPTIONS=(--enable-lora --max-lora-rank 8 --enable-scale-out --enable-tokenizer-info-endpoint --enable-server-load-tracking
        --profiler-config "{\"profiler\":\"torch\",\"torch_profiler_dir\":\"$DIR/$PORT.profile\"}") ;;
    traced) OPTIONS=(--enable-request-id-headers) ;;
    keyed) OPTIONS=(--api-key sk-differential) ;;
    rooted) OPTIONS=(--root-path /p) ;;
    uds) OPTIONS=(--uds "$DIR/$PORT.sock") REACH=(--unix-socket "$DIR/$PORT.sock") ;;
    chats) SETTINGS=(VLLM_SERVER_DEV_MODE=1 KV_BYTES=25165824 MAX_LEN=4096) ;;
    embed) OPTIONS=(--runner pooling --convert embed) ;;
    classify) OPTIONS=(--runner pooling --convert classify) ;;
    *) echo "invalid variant \`$VARIANT\` of $SERVER: expected plain, full, traced, keyed, rooted, uds, chats, embed or classify" >&2; exit 2 ;;
  esac
  setsid nohup env "${SETTINGS[@]}" bash "$HERE/vllm/serve.sh" "$DIR/$MODEL" "$MODEL" "$PORT" \
    --served-model-name "$MODEL" "$MODEL-alias" "${OPTIONS[@]}" >"$DIR/$PORT.log" 2>&1 </dev/null &
  echo $! >"$DIR/$PORT.pid"
  for _ in $(seq 900); do
    curl -sf -o /dev/null "${REACH[@]}" "http://127.0.0.1:$PORT/health" && break
    kill -0 "$(cat "$DIR/$PORT.pid")" || { tail "$DIR/$PORT.log"; exit 1; }
    sleep 0.2
  done
  curl -sf -o /dev/null "${REACH[@]}" "http://127.0.0.1:$PORT/health" ||
    { echo "$SERVER does not start, see $DIR/$PORT.log" >&2; exit 1; }
  echo "$SERVER is up, process $(cat "$DIR/$PORT.pid")"
done
