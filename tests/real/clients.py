#!/usr/bin/env python3
"""Do the official clients work through this address, unchanged?

    clients.py BASE_URL MODEL [MODEL...]        e.g. clients.py http://127.0.0.1:8000 tiny-a tiny-b

Needs the `openai` and `anthropic` packages. Prints one line per check and exits with 1 if one
failed. BASE_URL is a proxy's, or a bare vLLM's for the baseline. Options say what the servers
have besides (variants of servers.sh): a key, stored responses, an embedding model.
"""
import argparse
import asyncio
import http.client
import json
import sys
import time
import urllib.parse
import urllib.request

import anthropic
import openai

TIMEOUT = 60.0
QUESTION = [{"role": "user", "content": "Hello, who are you?"}]


def expect(condition, text):
    if not condition:
        raise AssertionError(text)


def expect_raises(kind, call, *needles):
    """The exception that the client makes of the answer; its text must hold the needles."""
    try:
        call()
    except kind as error:
        expect(type(error) is kind, f"expected exactly {kind.__name__}, got {type(error).__name__}")
        for needle in needles:
            expect(needle in str(error), f"expected {needle!r} in {error}")
        return error
    raise AssertionError(f"expected {kind.__name__}, got an answer")


class Skipped(Exception):
    """The check is of something that the servers were not said to have."""


class Checks:
    def __init__(self, base, models, key=None, store=False, embedding=None):
        self.base, self.models = base.rstrip("/"), models
        self.key, self.store, self.embedding = key, store, embedding
        self.openai = self._openai()
        self.anthropic = anthropic.Anthropic(**self._anthropic())

    def _openai(self, kind=openai.OpenAI, key=None):
        return kind(base_url=f"{self.base}/v1", api_key=key or self.key or "none", timeout=TIMEOUT, max_retries=0)

    def _anthropic(self):
        """vLLM takes a bearer token on all its routes, and no x-api-key on any."""
        return dict(base_url=self.base, auth_token=self.key or "none", timeout=TIMEOUT, max_retries=0)

    # Every method below is a check; those with a `model` parameter run once for each model.

    def lists_models(self):
        listed = [card.id for card in self.openai.models.list()]
        for model in self.models:
            expect(model in listed, f"expected {model} among {listed}")
        expect(len(listed) == len(set(listed)), f"expected each model once: {listed}")

    def unknown_model_is_not_found(self):
        error = expect_raises(
            openai.NotFoundError,
            lambda: self.openai.chat.completions.create(model="no-such-model", messages=QUESTION),
            "no-such-model", "does not exist", *self.models)
        expect(error.status_code == 404 and error.body["type"] == "NotFoundError", str(error.body))
        expect(error.param == "model", f"param is {error.param}")

    def unknown_model_is_not_found_when_streaming(self):
        expect_raises(
            openai.NotFoundError,
            lambda: self.openai.completions.create(model="no-such-model", prompt="a", stream=True))

    def unknown_model_is_not_found_by_anthropic(self):
        expect_raises(
            anthropic.NotFoundError,
            lambda: self.anthropic.messages.create(model="no-such-model", max_tokens=3, messages=QUESTION),
            "no-such-model")

    def unknown_path_is_not_found(self):
        expect_raises(openai.NotFoundError, lambda: self.openai.get("/frobnicate", cast_to=object))

    def model_may_be_absent(self):
        answer = self.openai.chat.completions.create(
            model="", messages=QUESTION, max_tokens=3, temperature=0)
        expect(answer.model == self.models[0], f"expected {self.models[0]}, got {answer.model}")

    def plain_chat(self, model):
        answer = self.openai.chat.completions.create(
            model=model, messages=QUESTION, max_tokens=8, temperature=0)
        expect(answer.model == model, f"answered by {answer.model}")
        expect(answer.usage.completion_tokens == 8, str(answer.usage))
        expect(answer.choices[0].message.content, "an empty answer")

    def streamed_chat_equals_plain_chat(self, model):
        asked = dict(model=model, messages=QUESTION, max_tokens=24, temperature=0)
        plain = self.openai.chat.completions.create(**asked).choices[0]
        text, reason, usage = "", None, None
        for chunk in self.openai.chat.completions.create(
                **asked, stream=True, stream_options={"include_usage": True}):
            expect(chunk.model == model, f"answered by {chunk.model}")
            usage = chunk.usage or usage
            for choice in chunk.choices:
                text += choice.delta.content or ""
                reason = choice.finish_reason or reason
        expect(text == plain.message.content, f"{text!r} is not {plain.message.content!r}")
        expect(reason == plain.finish_reason == "length", f"finish reasons {reason}, {plain.finish_reason}")
        expect(usage and usage.completion_tokens == 24, f"usage {usage}")

    def models_differ(self):
        """Weights differ, so answers do: two equal ones come from one backend."""
        texts = [self.openai.completions.create(
            model=model, prompt="Once upon a time", max_tokens=16, temperature=0).choices[0].text
            for model in self.models]
        expect(len(set(texts)) == len(texts), f"equal answers {texts}")

    def completions(self, model):
        answer = self.openai.completions.create(
            model=model, prompt=["Once", "upon a time"], n=2, max_tokens=4, seed=1)
        expect([choice.index for choice in answer.choices] == [0, 1, 2, 3], str(answer.choices))

    def streamed_completions(self, model):
        asked = dict(model=model, prompt="Once upon a time", max_tokens=20, temperature=0)
        text = "".join(chunk.choices[0].text for chunk in self.openai.completions.create(**asked, stream=True))
        plain = self.openai.completions.create(**asked).choices[0].text
        expect(text == plain, f"{text!r} is not {plain!r}")

    def stream_context_manager_left_early(self, model):
        with self.openai.chat.completions.create(
                model=model, messages=QUESTION, max_tokens=1000, stream=True) as stream:
            next(iter(stream))
        self.plain_chat(model)

    def logprobs(self, model):
        answer = self.openai.chat.completions.create(
            model=model, messages=QUESTION, max_tokens=3, temperature=0, logprobs=True, top_logprobs=2)
        expect(len(answer.choices[0].logprobs.content) == 3, str(answer.choices[0].logprobs))

    def bad_requests(self, model):
        chat = self.openai.chat.completions.create
        expect_raises(openai.BadRequestError, lambda: chat(model=model, messages=[]))
        expect_raises(openai.BadRequestError, lambda: chat(model=model, messages=QUESTION, temperature=-1))
        error = expect_raises(
            openai.BadRequestError,
            lambda: chat(model=model, messages=QUESTION, extra_body={"max_tokens": "many"}), "max_tokens")
        expect(error.body["code"] == 400, str(error.body))
        expect_raises(
            openai.BadRequestError,
            lambda: self.openai.completions.create(model=model, prompt="word " * 20000), "context length")

    def raw_response_headers(self, model):
        raw = self.openai.chat.completions.with_raw_response.create(
            model=model, messages=QUESTION, max_tokens=2, extra_headers={"X-Request-Id": "client-42"})
        expect(raw.headers["server"] == "uvicorn", str(raw.headers))
        expect(raw.parse().id == "chatcmpl-client-42", raw.parse().id)

    def extra_body(self, model):
        answer = self.openai.chat.completions.create(
            model=model, messages=QUESTION, max_tokens=4, temperature=0,
            extra_body={"return_token_ids": True, "ignore_eos": True})
        expect(len(answer.choices[0].model_extra["token_ids"]) == 4, str(answer.choices[0]))

    def embeddings_are_not_found(self, model):
        expect_raises(openai.NotFoundError, lambda: self.openai.embeddings.create(model=model, input="a"))

    def embeddings(self):
        if not self.embedding:
            raise Skipped("no --embedding")
        asked = dict(model=self.embedding, input=["One", "two"])
        # The client asks for base64 by itself and unpacks it.
        packed = self.openai.embeddings.create(**asked)
        plain = self.openai.embeddings.create(**asked, encoding_format="float")
        expect([one.index for one in plain.data] == [0, 1], str(plain.data)[:200])
        for one, other in zip(packed.data, plain.data):
            near = all(abs(a - b) < 1e-5 for a, b in zip(one.embedding, other.embedding, strict=True))
            expect(near, "base64 and float differ")
        expect_raises(openai.BadRequestError, lambda: self.openai.embeddings.create(**asked, dimensions=3), "dimensions")
        expect_raises(
            openai.NotFoundError, lambda: self.openai.embeddings.create(model="no-such-model", input="a"))

    def async_embeddings(self):
        if not self.embedding:
            raise Skipped("no --embedding")

        async def ask():
            async with self._openai(openai.AsyncOpenAI) as client:
                return await asyncio.gather(*(
                    client.embeddings.create(model=self.embedding, input=f"number {n}") for n in range(8)))
        expect(len({tuple(answer.data[0].embedding) for answer in asyncio.run(ask())}) == 8, "equal embeddings")

    def wrong_key_is_an_authentication_error(self, model):
        if not self.key:
            raise Skipped("no --key")
        wrong = self._openai(key="wrong")
        expect_raises(openai.AuthenticationError, lambda: wrong.models.list())
        expect_raises(
            openai.AuthenticationError,
            lambda: wrong.chat.completions.create(model=model, messages=QUESTION))
        expect_raises(
            openai.AuthenticationError,
            lambda: wrong.chat.completions.create(model="no-such-model", messages=QUESTION, stream=True))
        stranger = anthropic.Anthropic(base_url=self.base, auth_token="wrong", timeout=TIMEOUT, max_retries=0)
        expect_raises(
            anthropic.AuthenticationError,
            lambda: stranger.messages.create(model=model, max_tokens=3, messages=QUESTION))

    def tools(self, model):
        tool = {"type": "function", "function": {
            "name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}
        chat = self.openai.chat.completions.create
        asked = dict(model=model, messages=QUESTION, max_tokens=4, temperature=0, tools=[tool])
        answer = chat(**asked, tool_choice="none")
        expect(not answer.choices[0].message.tool_calls, str(answer))
        # The tiny models are served without a parser of tool calls.
        expect_raises(openai.BadRequestError, lambda: chat(**asked, tool_choice="auto"), "tool")
        expect_raises(openai.BadRequestError, lambda: chat(**{**asked, "tools": []}))

    def tool_results(self, model):
        messages = QUESTION + [
            {"role": "assistant", "content": None, "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "call_1", "content": "rain"}]
        answer = self.openai.chat.completions.create(model=model, messages=messages, max_tokens=3, temperature=0)
        expect(answer.choices[0].finish_reason == "length", str(answer))

    def responses(self, model):
        asked = dict(model=model, input="Hello there", max_output_tokens=6, temperature=0)
        plain = self.openai.responses.create(**asked)
        expect(plain.object == "response" and plain.output_text, str(plain))
        kinds, text = [], ""
        for event in self.openai.responses.create(**asked, stream=True):
            kinds.append(event.type)
            text += event.delta if event.type == "response.output_text.delta" else ""
        expect(kinds[0] == "response.created", str(kinds))
        expect(kinds[-1] in ("response.completed", "response.incomplete"), str(kinds))
        expect(text == plain.output_text, f"{text!r} is not {plain.output_text!r}")

    def responses_unknown_id(self):
        expect_raises(openai.NotFoundError, lambda: self.openai.responses.retrieve("resp_unknown"))

    def responses_are_stored(self, model):
        if not self.store:
            raise Skipped("no --store")
        first = self.openai.responses.create(model=model, input="Hello", max_output_tokens=6, temperature=0)
        expect(self.openai.responses.retrieve(first.id).output_text == first.output_text, first.id)
        second = self.openai.responses.create(
            model=model, input="Go on", previous_response_id=first.id, max_output_tokens=6, temperature=0)
        expect(second.previous_response_id == first.id, str(second))
        expect(second.usage.input_tokens > first.usage.input_tokens, "the conversation was not continued")
        expect_raises(openai.BadRequestError, lambda: self.openai.responses.cancel(first.id), "synchronous")

    def responses_in_the_background(self, model):
        if not self.store:
            raise Skipped("no --store")
        asked = dict(model=model, input="Hello", background=True, temperature=0)
        answer = self.openai.responses.create(**asked, max_output_tokens=6)
        expect(answer.status == "queued", answer.status)
        until = time.monotonic() + TIMEOUT
        while answer.status in ("queued", "in_progress") and time.monotonic() < until:
            time.sleep(0.05)
            answer = self.openai.responses.retrieve(answer.id)
        expect(answer.status == "incomplete" and answer.output_text, str(answer))
        long = self.openai.responses.create(**asked, max_output_tokens=1500)
        expect(self.openai.responses.cancel(long.id).status == "cancelled", "not cancelled")
        expect(self.openai.responses.retrieve(long.id).status == "cancelled", "cancelled and forgotten")

    def responses_resumed(self, model):
        if not self.store:
            raise Skipped("no --store")
        asked = dict(model=model, input="Hello", background=True, stream=True, temperature=0, max_output_tokens=6)
        events = list(self.openai.responses.create(**asked))
        identity = events[0].response.id
        rest = list(self.openai.responses.retrieve(identity, stream=True, starting_after=1))
        expect([e.sequence_number for e in rest] == [e.sequence_number for e in events[2:]],
               f"{[e.type for e in rest]} behind {[e.type for e in events]}")

    def responses_need_a_store(self, model):
        if self.store:
            raise Skipped("--store")
        create = self.openai.responses.create
        expect_raises(openai.BadRequestError, lambda: create(model=model, input="Hello", background=True))
        expect_raises(
            openai.NotFoundError, lambda: create(model=model, input="Hello", previous_response_id="resp_unknown"))

    def anthropic_messages(self, model):
        answer = self.anthropic.messages.create(model=model, max_tokens=8, messages=QUESTION)
        expect(answer.type == "message" and answer.model == model, str(answer))
        expect(answer.usage.output_tokens == 8 and answer.stop_reason == "max_tokens", str(answer))

    def anthropic_stream(self, model):
        with self.anthropic.messages.stream(model=model, max_tokens=8, messages=QUESTION) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        expect(text and final.content[0].text == text, str(final))
        expect(final.stop_reason == "max_tokens", str(final))

    def anthropic_count_tokens(self, model):
        expect(self.anthropic.messages.count_tokens(model=model, messages=QUESTION).input_tokens > 0, "none")

    def anthropic_bad_request(self, model):
        expect_raises(
            anthropic.BadRequestError,
            lambda: self.anthropic.messages.create(
                model=model, max_tokens=3, messages=[{"role": "user", "content": "word " * 20000}]))

    def anthropic_stream_events(self, model):
        events = list(self.anthropic.messages.create(
            model=model, max_tokens=8, messages=QUESTION, system="Be brief.", stream=True))
        kinds = [event.type for event in events]
        expect(kinds[0] == "message_start" and kinds[-1] == "message_stop", str(kinds))
        expect("content_block_delta" in kinds and kinds[-2] == "message_delta", str(kinds))

    def anthropic_errors(self, model):
        create = self.anthropic.messages.create
        expect_raises(
            anthropic.NotFoundError,
            lambda: create(model="no-such-model", max_tokens=3, messages=QUESTION, stream=True), "does not exist")
        expect_raises(
            anthropic.NotFoundError,
            lambda: self.anthropic.messages.count_tokens(model="no-such-model", messages=QUESTION))
        expect_raises(
            anthropic.BadRequestError,
            lambda: create(model=model, max_tokens=3, messages=QUESTION, extra_body={"top_k": "many"}), "top_k")

    def async_anthropic(self, model):
        async def one(client, n):
            if n % 2:
                answer = await client.messages.create(model=model, max_tokens=6, messages=QUESTION)
                return answer.content[0].text
            async with client.messages.stream(model=model, max_tokens=6, messages=QUESTION) as stream:
                return "".join([text async for text in stream.text_stream])

        async def all_of_them():
            async with anthropic.AsyncAnthropic(**self._anthropic()) as client:
                return await asyncio.gather(*(one(client, n) for n in range(8)))
        expect(all(asyncio.run(all_of_them())), "an empty answer")

    def websocket_is_refused(self):
        """Nobody has this socket: the handshake ends with a status, and not in silence."""
        address = urllib.parse.urlsplit(self.base)
        connection = http.client.HTTPConnection(address.hostname, address.port, timeout=TIMEOUT)
        connection.request("GET", "/v1/nothing", headers={
            "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Authorization": f"Bearer {self.key or 'none'}"})
        status = connection.getresponse().status
        connection.close()
        expect(400 <= status < 500, f"status {status}")

    def tokenize_and_back(self, model):
        def ask(path, body):
            request = urllib.request.Request(
                self.base + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                return json.load(answer)

        tokens = ask("/tokenize", {"model": model, "prompt": "Hello there"})["tokens"]
        text = ask("/detokenize", {"model": model, "tokens": tokens})["prompt"]
        expect(text == "Hello there", text)

    def redirect_is_followed(self):
        request = urllib.request.Request(
            self.base + "/v1/models/", headers={"Authorization": f"Bearer {self.key or 'none'}"})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            expect(answer.status == 200, str(answer.status))
            expect(answer.url == self.base + "/v1/models", answer.url)

    def many_at_once(self):
        """Sixteen at a time, half of them streams, of all models in turn."""
        async def one(client, n):
            model = self.models[n % len(self.models)]
            asked = dict(model=model, messages=QUESTION, max_tokens=12, temperature=0)
            if n % 4 < 2:
                answer = await client.chat.completions.create(**asked)
                return model, answer.model, answer.choices[0].message.content
            text, who = "", None
            async for chunk in await client.chat.completions.create(**asked, stream=True):
                who = chunk.model
                text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
            return model, who, text

        async def all_of_them():
            async with self._openai(openai.AsyncOpenAI) as client:
                return await asyncio.gather(*(one(client, n) for n in range(16)))

        for model, who, text in asyncio.run(all_of_them()):
            expect(who == model, f"asked {model}, answered by {who}")
            expect(text, "an empty answer")

    def async_not_found(self):
        async def ask():
            async with self._openai(openai.AsyncOpenAI) as client:
                await client.chat.completions.create(model="no-such-model", messages=QUESTION)
        expect_raises(openai.NotFoundError, lambda: asyncio.run(ask()))

    def cancelled_async_stream(self, model):
        async def ask():
            async with self._openai(openai.AsyncOpenAI) as client:
                stream = await client.chat.completions.create(
                    model=model, messages=QUESTION, max_tokens=1000, stream=True)
                async for _ in stream:
                    await stream.close()
                    return
        asyncio.run(asyncio.wait_for(ask(), TIMEOUT))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("base_url")
    parser.add_argument("models", nargs="+", help="first names of the models, the default model first")
    parser.add_argument("--key", help="what the servers were given as --api-key")
    parser.add_argument("--store", action="store_true", help="the servers store responses")
    parser.add_argument("--embedding", metavar="MODEL", help="a model that embeds")
    arguments = parser.parse_args()
    checks = Checks(
        arguments.base_url, arguments.models, arguments.key, arguments.store, arguments.embedding)
    failed = total = 0
    for name, function in vars(Checks).items():
        if name.startswith("_"):
            continue
        takes_model = "model" in function.__code__.co_varnames[:function.__code__.co_argcount]
        for model in arguments.models if takes_model else [None]:
            total += 1
            label = f"{name} [{model}]" if model else name
            begun = time.monotonic()
            try:
                function(checks, *([model] if model else []))
                print(f"pass  {label} ({time.monotonic() - begun:.2f} s)", flush=True)
            except Skipped as why:
                total -= 1
                print(f"skip  {label}: {why}", flush=True)
            except Exception as error:  # Whatever it is, the other checks go on.
                failed += 1
                print(f"FAIL  {label}: {type(error).__name__}: {error}", flush=True)
    print(f"{total - failed} of {total} pass")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
