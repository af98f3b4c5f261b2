#!/usr/bin/env python3
"""How much of all prompts do real servers find in their caches, by policy, and does `vllm-proxy
simulate` foresee it?

    hits.py PROXY MODEL HOST:PORT HOST:PORT...     e.g. hits.py target/release/vllm-proxy tiny-a 127.0.0.1:18001 ...

Users hold chats of several turns at once: some share a system prompt, all send what was said so
far with each question, and think before the next one. The same chats go through a proxy of each
policy in turn, from empty caches. What was found is the servers' own count. Each run is written
down as a trace (--out), which is then simulated. Exits with 1 if a request failed or a --goal is
missed. The servers are the variant `chats` of servers.sh, and serve nobody else meanwhile.
Standard library only.
"""
import argparse
import http.client
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import threading
import time

LIMIT = 60.0  # Nothing here waits longer.
# Each is one token of the tiny models, with the space before it.
WORDS = """the of and to in is that for it as was with be by on not he this are or his from at which but have an they you
were her all one there would their we him been has when who will more no if out so said what up its about into than them
can only other new some could time these two may then do first any my now such like our over man me even most made after
also did many before must through years where much your way well down should because each just those people how too
little state good very make world still see work long get here between both life being under never day same another know
while last might us great old year off come since against go came right used take three""".split()


class Server:
    def __init__(self, address):
        self.address = address

    def ask(self, method, path, body=None):
        connection = http.client.HTTPConnection(self.address, timeout=LIMIT)
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        if answer.status != 200:
            raise RuntimeError(f"{method} {path} of {self.address}: {answer.status} {text[:200]}")
        return text

    def metrics(self, *names):
        text = self.ask("GET", "/metrics")
        return [sum(map(float, re.findall(rf"^{name}\{{.*\}} (\S+)$", text, re.M))) for name in names]

    def cache(self):
        """(tokens of a block, tokens that can be held)"""
        text = self.ask("GET", "/metrics")
        block, count = (
            int(re.search(rf'^vllm:cache_config_info\{{.*\b{name}="(\d+)"', text, re.M)[1])
            for name in ("block_size", "num_gpu_blocks"))
        return block, (count - 1) * block  # One block is nobody's.


class Proxy:
    """A proxy of the policy before the servers, on a port that nobody has."""

    def __init__(self, binary, policy, servers, log):
        upstreams = [f"http://{server.address}" for server in servers]
        command = [binary, "server", "-R", "off", "-H", "127.0.0.1", "-p", "0", "-L", "json", "-vv",
                   "--drain-grace", "0", "--policy", policy, *upstreams]
        self.log = log
        self.process = subprocess.Popen(command, stdout=open(log, "wb"), stderr=subprocess.STDOUT)
        self.server = Server(self._address())

    def _address(self):
        until = time.monotonic() + LIMIT
        while time.monotonic() < until and self.process.poll() is None:
            found = re.search(r"127\.0\.0\.1:(\d+)", "".join(
                line for line in self.log.read_text().splitlines() if '"listening"' in line))
            if found:
                return found[0]
            time.sleep(0.05)
        raise RuntimeError(f"the proxy does not start, see {self.log}")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(LIMIT)


def wait_for(condition, what):
    until = time.monotonic() + LIMIT
    while not condition():
        if time.monotonic() > until:
            raise RuntimeError(f"waited {LIMIT:.0f} s for {what}")
        time.sleep(0.1)


class Chats:
    """What all users say and when, the same for each policy; answers are the model's."""

    def __init__(self, arguments, words):
        self.arguments, self.words = arguments, words
        self.lock, self.requests, self.failures = threading.Lock(), [], []

    def run(self, proxy):
        users = [threading.Thread(target=self._user, args=(proxy, number)) for number in range(self.arguments.users)]
        self.begun = time.monotonic()
        for user in users:
            user.start()
        for user in users:
            user.join()

    def _user(self, proxy, number):
        it = self.arguments
        rng = random.Random(f"{it.seed} user {number}")
        # A third of them have a system prompt of their own.
        shared = number % 3 and rng.randrange(it.systems)
        system = random.Random(f"{it.seed} system {shared if number % 3 else f'of {number}'}")
        system = self._text(system, it.system_words)
        time.sleep(rng.uniform(0, it.pause))
        for _ in range(it.chats):
            messages = [{"role": "system", "content": system}]
            for _ in range(it.turns):
                question = self._text(rng, round(it.words * rng.uniform(0.4, 1.6)))
                answer_tokens, pause = rng.randrange(16, 97), rng.expovariate(1 / it.pause)
                messages.append({"role": "user", "content": question})
                try:
                    answer = self._ask(proxy, messages, answer_tokens)
                except Exception as error:  # Whatever it is, the other users go on.
                    with self.lock:
                        self.failures.append(f"user {number}: {type(error).__name__}: {error}")
                    return
                messages.append({"role": "assistant", "content": answer})
                time.sleep(min(pause, 4 * it.pause))

    def _text(self, rng, words):
        return " ".join(rng.choice(WORDS) for _ in range(words))

    def _ask(self, proxy, messages, tokens):
        # A random model says bytes that are no text, and another token sequence when they come back
        # in the next prompt. Held to words it answers as a trained one does.
        body = {"model": self.arguments.model, "messages": messages, "max_tokens": tokens, "temperature": 0,
                "allowed_token_ids": self.words, "stream": True, "stream_options": {"include_usage": True},
                "return_token_ids": True}
        connection = http.client.HTTPConnection(proxy.address, timeout=LIMIT)
        data = json.dumps(body)
        sent = time.monotonic()
        connection.request("POST", "/v1/chat/completions", data, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise RuntimeError(f"{answer.status} {answer.read()[:200]}")
        first, prompt, said, text, usage = None, None, [], "", None
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            prompt = chunk.get("prompt_token_ids") or prompt
            usage = chunk.get("usage") or usage
            for choice in chunk.get("choices", ()):
                if choice.get("token_ids"):
                    first = first or time.monotonic()
                    said += choice["token_ids"]
                text += choice["delta"].get("content") or ""
        connection.close()
        if not (first and prompt and usage) or usage["completion_tokens"] != len(said):
            raise RuntimeError(f"an answer of {len(said)} tokens is not whole: {usage}")
        with self.lock:
            self.requests.append({
                "at": sent - self.begun, "ttft": first - sent, "took": time.monotonic() - sent, "prompt": prompt,
                "answer": said, "cached": usage["prompt_tokens_details"]["cached_tokens"],
                "bytes": sum(len(message["content"]) for message in messages)})
        return text


def write_trace(path, requests, block):
    """As Mooncake's, with what the blocks of answers hold besides: equal ids, equal beginnings. What
    nobody simulates stands behind."""
    known, lines = {}, []

    def ids(tokens):
        before, found = 0, []
        for start in range(0, len(tokens), block):
            before = known.setdefault((before, tuple(tokens[start:start + block])), len(known) + 1)
            found.append(before)
        return found

    for request in sorted(requests, key=lambda request: request["at"]):
        prompt, answer = request["prompt"], request["answer"]
        # What the last token would add is never computed.
        whole = (len(prompt) + len(answer) - 1) // block
        lines.append(json.dumps({
            "timestamp": round(request["at"] * 1000), "input_length": len(prompt), "output_length": len(answer),
            "hash_ids": ids(prompt), "output_hash_ids": ids((prompt + answer)[:whole * block])[len(prompt) // block:],
            **{name: round(request[name], 6) for name in ("cached", "ttft", "took")}}))
    path.write_text("\n".join(lines) + "\n")


def percentile(values, percent):
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


def run(arguments, servers, words, policy, out):
    """One policy, from empty caches: what was measured."""
    wait_for(lambda: not any(sum(server.metrics("vllm:num_requests_running", "vllm:num_requests_waiting")) for server in servers),
             "idle servers")
    proxy = Proxy(arguments.proxy, policy, servers, out / f"{policy}.log")
    try:
        wait_for(lambda: healthy(proxy.server, arguments.model), "a proxy that knows the model")
        answer = json.loads(proxy.server.ask("POST", "/reset_prefix_cache"))
        if answer != {"success": True}:
            raise RuntimeError(f"caches are not reset: {answer}")
        counts = [f"vllm:{name}_total" for name in (
            "prefix_cache_queries", "prefix_cache_hits", "num_preemptions", "request_success")]
        before = [server.metrics(*counts) for server in servers]
        chats = Chats(arguments, words)
        chats.run(proxy.server)
        after = [server.metrics(*counts) for server in servers]
        believed, told = proxy.server.metrics(
            "vllm_proxy_predicted_cached_tokens_total", "vllm_proxy_reported_cached_tokens_total")
    finally:
        proxy.stop()
    for failure in chats.failures:
        print(f"FAIL  {policy}, {failure}", flush=True)
    by_server = [[y - x for x, y in zip(*pair)] for pair in zip(before, after)]
    asked, found, preempted, _ = map(sum, zip(*by_server))
    requests, (block, kv_tokens) = chats.requests, servers[0].cache()
    write_trace(out / f"{policy}.jsonl", requests, block)
    times = [request["at"] for request in requests]
    measured = {
        "policy": policy, "requests": len(requests), "by_server": [int(one[3]) for one in by_server],
        "failures": len(chats.failures), "preempted": preempted, "prompt_tokens": asked, "hit": found / asked,
        "believed": believed / asked, "told": told / asked,
        "bytes_a_token": sum(request["bytes"] for request in requests) / asked,
        "rate": (len(times) - 1) / (max(times) - min(times)), "servers": len(servers), "block_tokens": block,
        "kv_tokens": kv_tokens, "seed": arguments.seed, "users": arguments.users, "load": os.getloadavg()[0],
        **{f"{what}_p{part}_ms": percentile([request[what] * 1000 for request in requests], part)
           for what in ("ttft", "took") for part in (50, 90)}}
    (out / f"{policy}.json").write_text(json.dumps(measured, indent=2) + "\n")


def healthy(proxy, model):
    try:
        return model in proxy.ask("GET", "/v1/models")
    except (RuntimeError, OSError):
        return False


def pace(trace):
    """Milliseconds of a step and prompt tokens a second of the machine that this was recorded on:
    quartiles on the side of those that met nobody else in their steps, nor in the queue."""
    lines = [json.loads(line) for line in trace.read_text().splitlines()]
    step = percentile([(one["took"] - one["ttft"]) / (one["output_length"] - 1) for one in lines], 25)
    prompts = [(one["input_length"] - one["cached"], one["ttft"] - step) for one in lines]
    return step * 1000, percentile([tokens / max(time, step) for tokens, time in prompts if tokens >= 500], 75)


def simulate(arguments, out, measured, policies):
    """What `simulate` makes of the trace under these policies, at the pace at which it was recorded."""
    trace = out / f"{measured['policy']}.jsonl"
    step, prefill = pace(trace)
    command = [
        arguments.proxy, "simulate", str(trace), "--policy", ",".join(policies), "--json",
        "--block-tokens", str(measured["block_tokens"]), "--kv-tokens", str(measured["kv_tokens"]),
        "--backends", str(measured["servers"]), "--rate", f"{measured['rate'] / measured['servers']:.6f}",
        "--step-ms", f"{step:.3f}", "--prefill-rate", f"{prefill:.0f}", "--decode-us", "1", "--context-us", "1",
        "--max-num-batched-tokens", "2048", "--max-num-seqs", "8", *arguments.simulate.split()]
    print("+ " + " ".join(command), flush=True)
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return told, {one["policy"]: one for one in told["runs"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("proxy", help="the binary")
    parser.add_argument("model")
    parser.add_argument("servers", nargs="*", metavar="HOST:PORT", help="bare servers of the model; none: simulate what --out has")
    parser.add_argument("--policy", default="cache-aware,least-load,round-robin", help="policies, separated by commas")
    parser.add_argument("--users", type=int, default=30, help="who chat at the same time (30)")
    parser.add_argument("--chats", type=int, default=2, help="chats of each, one after the other (2)")
    parser.add_argument("--turns", type=int, default=8, help="questions of a chat (8)")
    parser.add_argument("--pause", type=float, default=6.0, help="seconds from an answer to the next question, on average (6)")
    parser.add_argument("--systems", type=int, default=4, help="system prompts that are shared (4)")
    parser.add_argument("--system-words", type=int, default=600, help="length of a system prompt (600)")
    parser.add_argument("--words", type=int, default=220, help="length of a question, on average (220)")
    parser.add_argument("--seed", default="1", help="what all texts and pauses follow from")
    parser.add_argument("--out", default="hits", help="directory for traces, results and logs (hits)")
    parser.add_argument("--simulate", default="", help="more options of `simulate`, in one argument")
    parser.add_argument("--goal", type=float, default=1.5, help="the first policy's hits in those of the last, at least (1.5)")
    parser.add_argument("--near", type=float, default=0.1, help="part by which a prediction may be off (0.1)")
    arguments = parser.parse_args()
    out, policies = pathlib.Path(arguments.out), arguments.policy.split(",")
    out.mkdir(parents=True, exist_ok=True)
    servers = [Server(address) for address in arguments.servers]
    if servers:
        words = json.loads(servers[0].ask("POST", "/tokenize", {
            "model": arguments.model, "prompt": " " + " ".join(WORDS), "add_special_tokens": False}))["tokens"]
        if len(words) != len(WORDS):
            sys.exit(f"{len(WORDS)} words are {len(words)} tokens of {arguments.model}")
        for policy in policies:
            print(f"{time.strftime('%H:%M:%S')} {policy}", flush=True)
            run(arguments, servers, sorted(set(words)), policy, out)
    rows, good = [], True
    for policy in policies:
        measured = json.loads((out / f"{policy}.json").read_text())
        rows.append((measured, *simulate(arguments, out, measured, policies)))
    first = rows[0][0]
    print(f"\n{first['users']} users, seed {first['seed']}, {first['rate']:.1f} requests/s, {first['bytes_a_token']:.2f} bytes a "
          f"token; {first['servers']} servers with caches of {first['kv_tokens']} tokens, blocks of {first['block_tokens']}\n")
    print("| policy | requests (by server) | prompt tokens | hit | predicted | off | believed | one cache of all | no limit "
          "| TTFT p50, p90 | simulated | load |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for measured, told, simulated in rows:
        hit, run_of = measured["hit"], simulated[measured["policy"]]
        predicted, waits = run_of["hit"], run_of["ttft_us"]
        # Only one that knows caches believes anything of them.
        believed = f"{measured['believed']:.3f}" if measured["believed"] else "-"
        good &= measured["failures"] == 0 and abs(predicted / hit - 1) <= arguments.near
        print(f"| {measured['policy']} | {measured['requests']} ({' '.join(map(str, measured['by_server']))}) | "
              f"{measured['prompt_tokens']:.0f} | {hit:.3f} | {predicted:.3f} | {predicted / hit - 1:+.1%} | "
              f"{believed} | {told['hit_pool']:.3f} | {told['hit_inf']:.3f} | "
              f"{measured['ttft_p50_ms']:.0f}, {measured['ttft_p90_ms']:.0f} ms | "
              f"{waits['p50'] / 1000:.0f}, {waits['p90'] / 1000:.0f} ms | {measured['load']:.1f} |")
    ratio = rows[0][0]["hit"] / rows[-1][0]["hit"]
    foreseen = rows[0][2][policies[0]]["hit"] / rows[-1][2][policies[-1]]["hit"]
    print(f"\n{policies[0]} / {policies[-1]}: measured {ratio:.2f}, predicted {foreseen:.2f}")
    return 0 if good and ratio >= arguments.goal else 1


if __name__ == "__main__":
    sys.exit(main())
