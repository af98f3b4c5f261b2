#!/usr/bin/env python3
"""How soon does vLLM stop working for a client that has left?

    abort.py BASE_URL MODEL --metrics HOST:PORT [--metrics HOST:PORT ...]

Requests go through BASE_URL (a proxy, or the bare server for the baseline) and are left open in
several ways; the /metrics of the bare servers tell how long until nothing runs or waits there.
Prints one line per way and exits with 1 if one took longer than --goal seconds or generated to
its end. The servers must be otherwise idle. Standard library only.
"""
import argparse
import http.client
import json
import os
import re
import socket
import sys
import threading
import time
import urllib.parse

LIMIT = 30.0  # Nothing here waits longer.
# Polling costs the server some CPU, which the tiny model's engine shares.
POLL = 0.01


class Servers:
    def __init__(self, addresses):
        self.connections = [http.client.HTTPConnection(a, timeout=LIMIT) for a in addresses]

    def sums(self):
        """(running, waiting, tokens generated so far) over all servers."""
        totals = dict.fromkeys(("num_requests_running", "num_requests_waiting", "generation_tokens_total"), 0.0)
        for connection in self.connections:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
            for name in totals:
                totals[name] += sum(map(float, re.findall(rf"^vllm:{name}\{{.*\}} (\S+)$", text, re.M)))
        return tuple(totals.values())

    def wait_for(self, condition, seconds=LIMIT):
        """Seconds until the condition on the sums holds, None if it did not in time."""
        begun = time.monotonic()
        while time.monotonic() - begun < seconds:
            if condition(*self.sums()):
                return time.monotonic() - begun
            time.sleep(POLL)
        return None


def busy(running, waiting, _):
    return running + waiting > 0


def idle(running, waiting, _):
    return running + waiting == 0


def send(base, path, body):
    """Sends a request and leaves the answer to the caller."""
    url = urllib.parse.urlsplit(base)
    peer = socket.create_connection((url.hostname, url.port or 80), timeout=LIMIT)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    data = json.dumps(body).encode()
    head = (f"POST {url.path.rstrip('/')}{path} HTTP/1.1\r\nHost: {url.netloc}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n")
    peer.sendall(head.encode() + data)
    return peer


def leave(peer, how):
    if how == "reset":
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.close()
    elif how == "half-close":
        peer.shutdown(socket.SHUT_WR)
    else:
        peer.close()


def ways(model, tokens):
    """Name, path, body, what to wait for before leaving, how to leave."""
    question = [{"role": "user", "content": "Count to a million."}]
    chat = {"model": model, "messages": question, "max_tokens": tokens, "ignore_eos": True}
    text = {"model": model, "prompt": "Count to a million: ", "max_tokens": tokens, "ignore_eos": True}
    # As long a prompt as fits, never seen before, so that no prefix cache shortens it.
    words = " ".join(str(time.time_ns() + n) for n in range(60))
    prefill = {**text, "prompt": words, "n": 4, "max_tokens": 500}
    responses = {"model": model, "input": "Count", "max_output_tokens": tokens, "stream": True}
    anthropic = {"model": model, "messages": question, "max_tokens": tokens, "stream": True}
    return [
        ("stream, after the first event", "/v1/chat/completions", {**chat, "stream": True}, "event", "close"),
        ("stream, after the first event, reset", "/v1/chat/completions", {**chat, "stream": True}, "event", "reset"),
        ("stream, after the first event, half-close", "/v1/chat/completions", {**chat, "stream": True}, "event", "half-close"),
        ("stream, n=16, some of it queued", "/v1/completions", {**text, "stream": True, "n": 16}, "event", "close"),
        ("completions stream", "/v1/completions", {**text, "stream": True}, "event", "close"),
        ("messages stream", "/v1/messages", anthropic, "event", "close"),
        ("responses stream", "/v1/responses", responses, "event", "close"),
        ("plain, while it runs", "/v1/chat/completions", chat, "running", "close"),
        ("plain, while it runs, reset", "/v1/chat/completions", chat, "running", "reset"),
        ("plain, while it runs, half-close", "/v1/chat/completions", chat, "running", "half-close"),
        ("plain, 20 ms after it was sent (prefill)", "/v1/completions", prefill, 0.02, "close"),
        ("stream, 20 ms after it was sent (prefill)", "/v1/completions", {**prefill, "stream": True}, 0.02, "close"),
        ("stream, at once after it was sent", "/v1/completions", {**prefill, "stream": True}, 0.0, "close"),
    ]


def try_one(base, servers, path, body, moment, how):
    """(seconds until idle or None, share of the tokens that were generated, remark)."""
    if servers.wait_for(idle) is None:
        return None, 1.0, "the servers are not idle"
    before = servers.sums()[2]
    peer = send(base, path, body)
    remark = ""
    if moment == "event":
        # Some routes speak before the engine does: wait for it too.
        if b"data:" not in first_bytes(peer):
            return None, 1.0, "no event came"
        servers.wait_for(busy, 2.0)
    elif moment == "running":
        if servers.wait_for(busy, 5.0) is None:
            return None, 1.0, "it never ran"
    else:
        time.sleep(moment)
    begun = time.monotonic()
    leave(peer, how)
    if isinstance(moment, float):
        # It may be on its way to the engine still: idle must hold for a while.
        last_busy = begun
        while time.monotonic() - begun < 0.5 or time.monotonic() - last_busy < 0.3:
            last_busy = time.monotonic() if busy(*servers.sums()) else last_busy
            if time.monotonic() - begun > LIMIT:
                return None, 1.0, "busy for ever"
            time.sleep(POLL)
        took = last_busy - begun
    else:
        took = servers.wait_for(idle)
    peer.close()
    wanted = body.get("max_tokens", body.get("max_output_tokens")) * body.get("n", 1)
    return took, (servers.sums()[2] - before) / wanted, remark


def first_bytes(peer):
    got = b""
    while b"data:" not in got:
        more = peer.recv(65536)
        if not more:
            break
        got += more
    return got


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("base_url")
    parser.add_argument("model")
    parser.add_argument("--metrics", action="append", required=True, help="host:port of a bare server")
    parser.add_argument("--goal", type=float, default=0.3, help="seconds (0.3)")
    parser.add_argument("--tokens", type=int, default=1900, help="max_tokens of what is left open (1900)")
    parser.add_argument("--times", type=int, default=3, help="how often each is tried (3)")
    parser.add_argument("--only", default="", help="the ways whose name contains this text")
    arguments = parser.parse_args()
    # A watchdog, so that nothing here can hang.
    watchdog = threading.Timer(LIMIT * 20, lambda: os._exit(2))
    watchdog.daemon = True
    watchdog.start()
    servers = Servers(arguments.metrics)
    failed = 0
    for name, path, body, moment, how in ways(arguments.model, arguments.tokens):
        if arguments.only not in name:
            continue
        tries = [try_one(arguments.base_url, servers, path, body, moment, how) for _ in range(arguments.times)]
        good = all(t is not None and t <= arguments.goal and share < 0.9 for t, share, _ in tries)
        failed += not good
        times = ", ".join("never" if t is None else f"{t * 1000:.0f} ms" for t, _, _ in tries)
        shares = max(share for _, share, _ in tries)
        remarks = "; ".join(sorted({r for _, _, r in tries if r}))
        print(f"{'pass' if good else 'FAIL'}  {name:<45} idle after {times}; at most {shares:.0%} generated {remarks}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
