#!/usr/bin/env python3
"""What do clients see of a backend that dies?

    kill.py BASE_URL MODEL --kill PID [--workers 12] [--seconds 12] [--kill-after 4]

BASE_URL is a proxy before two servers of MODEL, PID one of the servers. Workers send requests
without a pause, streams and plain ones in turn; in the middle the server gets SIGKILL. Then

- no request may fail whose answer had not begun (no body byte had come),
- a stream that had begun may break, and must then look broken: no last chunk,
- what ends as complete must be complete: [DONE], and as many tokens as were asked for,
- nothing may fail that was sent later than --settled seconds after the kill.

Prints what became of the requests and exits with 1 if one of these does not hold. Raw sockets,
standard library only: HTTP clients hide the last chunk.
"""
import argparse
import collections
import json
import os
import signal
import socket
import sys
import threading
import time
import urllib.parse

LIMIT = 30.0  # No request is silent for longer.

Result = collections.namedtuple("Result", "kind sent ended outcome detail")


def receive(peer):
    """What came, nothing once the connection has ended in any way."""
    try:
        return peer.recv(65536)
    except ConnectionResetError:
        return b""


def read_answer(peer):
    """(status, body, whether it ended as complete)."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = receive(peer)
        if not more:
            return None, b"", False
        data += more
    head, rest = data.split(b"\r\n\r\n", 1)
    lines = head.decode("latin-1").split("\r\n")
    status = int(lines[0].split()[1])
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    if "transfer-encoding" not in headers:
        length = int(headers["content-length"])
        while len(rest) < length:
            more = receive(peer)
            if not more:
                return status, rest, False
            rest += more
        return status, rest, True
    body = b""
    while True:
        while b"\r\n" not in rest:
            more = receive(peer)
            if not more:
                return status, body, False
            rest += more
        size, rest = rest.split(b"\r\n", 1)
        size = int(size, 16)
        while len(rest) < size + 2:
            more = receive(peer)
            if not more:
                return status, body + rest[:size], False
            rest += more
        body, rest = body + rest[:size], rest[size + 2:]
        if size == 0:
            return status, body, True


def judge(stream, tokens, status, body, complete):
    """(outcome, detail): `complete`, `broken` (rightly) or `failed`."""
    if not complete:
        if stream and status == 200 and body:
            return "broken", f"after {body.count(b'data:')} events"
        what = "plain answer cut short" if body else "cut short before a byte of the body"
        return "failed", f"{what}, status {status}"
    if status != 200:
        return "failed", f"status {status}: {body[:300]!r}"
    if stream:
        events = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: ")]
        if not events or events[-1] != b"[DONE]":
            return "failed", f"ended as complete without [DONE], after {len(events)} events"
        if b'"error"' in events[0] or b'"error"' in events[-2]:
            # A dying engine says so in the stream, when it still can.
            return "failed" if b'"error"' in events[0] else "broken", f"error event {events[-2][:200]!r}"
        usage = json.loads(events[-2]).get("usage")
    else:
        usage = json.loads(body).get("usage")
    if not usage or usage["completion_tokens"] != tokens:
        return "failed", f"expected {tokens} tokens, usage is {usage}"
    return "complete", ""


class Run:
    def __init__(self, arguments):
        self.arguments = arguments
        self.url = urllib.parse.urlsplit(arguments.base_url)
        self.results, self.lock = [], threading.Lock()
        self.begun = time.monotonic()

    def now(self):
        return time.monotonic() - self.begun

    def work(self, number):
        turn = number
        while self.now() < self.arguments.seconds:
            stream = turn % 3 != 0
            turn += 1
            sent = self.now()
            try:
                outcome, detail = self.one(stream, number)
            except Exception as error:
                outcome, detail = "failed", f"{type(error).__name__}: {error}"
            with self.lock:
                self.results.append(Result("stream" if stream else "plain", sent, self.now(), outcome, detail))
            if outcome == "failed":
                time.sleep(0.1)  # A dead address refuses quickly: do not spin.

    def one(self, stream, number):
        tokens = self.arguments.tokens
        body = {"model": self.arguments.model, "max_tokens": tokens, "temperature": 0, "ignore_eos": True,
                "messages": [{"role": "user", "content": f"Worker {number}, please count."}]}
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        data = json.dumps(body).encode()
        head = (f"POST {self.url.path.rstrip('/')}/v1/chat/completions HTTP/1.1\r\nHost: {self.url.netloc}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n")
        with socket.create_connection((self.url.hostname, self.url.port or 80), timeout=LIMIT) as peer:
            peer.sendall(head.encode() + data)
            status, answer, complete = read_answer(peer)
        return judge(stream, tokens, status, answer, complete)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("base_url")
    parser.add_argument("model")
    parser.add_argument("--kill", type=int, action="append", required=True, help="process id of one server (repeatable: its engine too)")
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=12)
    parser.add_argument("--kill-after", type=float, default=4)
    parser.add_argument("--settled", type=float, default=0.0, help="seconds after the kill from when on nothing may break (0)")
    parser.add_argument("--tokens", type=int, default=60, help="max_tokens of each request (60)")
    arguments = parser.parse_args()
    run = Run(arguments)
    threads = [threading.Thread(target=run.work, args=(n,), daemon=True) for n in range(arguments.workers)]
    for thread in threads:
        thread.start()
    time.sleep(arguments.kill_after)
    killed = run.now()
    for pid in arguments.kill:
        os.kill(pid, signal.SIGKILL)
    for thread in threads:
        thread.join(timeout=max(0.0, arguments.seconds - run.now()) + 2 * LIMIT)
    stuck = sum(thread.is_alive() for thread in threads)

    with run.lock:
        results = list(run.results)
    phases = {
        "ended before the kill": [r for r in results if r.ended < killed],
        "in flight at the kill": [r for r in results if r.sent < killed <= r.ended],
        "sent after the kill": [r for r in results if r.sent >= killed],
    }
    bad = [f"{stuck} workers are stuck"] if stuck else []
    for phase, those in phases.items():
        counts = collections.Counter((r.kind, r.outcome) for r in those)
        print(f"{phase:<22} " + ", ".join(f"{n} {kind} {outcome}" for (kind, outcome), n in sorted(counts.items())))
        for r in those:
            if r.outcome == "failed":
                bad.append(f"{phase}: {r.kind} sent {r.sent - killed:+.3f} s, ended {r.ended - killed:+.3f} s: {r.detail}")
            elif r.outcome == "broken" and not (phase == "in flight at the kill" or r.sent < killed + arguments.settled):
                bad.append(f"{phase}: {r.kind} sent {r.sent - killed:+.3f} s broke: {r.detail}")
    ended = [r.ended - killed for r in phases["in flight at the kill"] if r.outcome == "broken"]
    if ended:
        print(f"the {len(ended)} broken streams ended {min(ended) * 1000:.0f} to {max(ended) * 1000:.0f} ms after the kill")
    slowest = max((r.ended - r.sent for r in results if r.outcome == "complete"), default=0.0)
    print(f"{len(results)} requests, the slowest complete one took {slowest:.2f} s")
    if not phases["in flight at the kill"] or not phases["sent after the kill"]:
        bad.append("no request was in flight or none followed: the run says nothing")
    for line in bad[:20]:
        print(f"FAIL  {line}")
    if not bad:
        print("pass")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
