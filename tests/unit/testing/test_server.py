"""The fake provider, through the real SDK: its bodies, its counts, its bill and its faults."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import pytest

from aifinops.errors import ConfigurationError
from aifinops.testing import FakeClock, FakeProvider
from aifinops.testing.trace import prompt_of

openai = pytest.importorskip("openai", reason="the fake provider is tested through the real openai client")
from openai.types import Completion, CreateEmbeddingResponse, Model  # noqa: E402 - after importorskip
from openai.types.chat import ChatCompletion, ChatCompletionChunk  # noqa: E402
from openai.types.responses import Response, ResponseStreamEvent  # noqa: E402
from pydantic import BaseModel, TypeAdapter  # noqa: E402

HELLO = [{"role": "user", "content": "hello there, world"}]
FUNCTION: dict[str, Any] = {
    "name": "find_order",
    "parameters": {
        "type": "object",
        "properties": {"order": {"type": "integer"}, "deep": {"type": "boolean"}},
        "required": ["order", "deep"],
    },
}
TOOL: dict[str, Any] = {"type": "function", "function": FUNCTION}
FLAT_TOOL: dict[str, Any] = {"type": "function", "strict": False, **FUNCTION}
"""The same tool in the words of the responses API."""


@pytest.fixture
def server() -> Iterator[FakeProvider]:
    """A running fake provider."""
    with FakeProvider() as running:
        yield running


@pytest.fixture
def client(server: FakeProvider) -> Iterator[Any]:
    """The real client, pointed at the fake."""
    with openai.OpenAI(base_url=server.base_url, api_key="test") as made:
        yield made


def raw(server: FakeProvider, path: str, body: object, method: str = "POST", **headers: str) -> tuple[int, str]:
    """One request without the SDK, so that the body is seen as it was sent."""
    connection = HTTPConnection(*_address(server))
    try:
        connection.request(method, f"/v1{path}", body if isinstance(body, str) else json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def sse_events(text: str) -> list[dict[str, Any]]:
    """The JSON payloads of a server-sent event stream, without the closing `[DONE]`."""
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(item) for item in data if item != "[DONE]"]


class TestBodies:
    """Every body is true to the SDK's types."""

    @pytest.mark.parametrize(
        ("path", "body", "shape"),
        [
            ("/chat/completions", {"model": "gpt-4o", "messages": HELLO}, ChatCompletion),
            ("/chat/completions", {"model": "gpt-5", "messages": HELLO, "n": 3}, ChatCompletion),
            ("/chat/completions", {"model": "gpt-4o", "messages": HELLO, "tools": [TOOL]}, ChatCompletion),
            ("/chat/completions", {"model": "gpt-5", "messages": HELLO, "max_completion_tokens": 2}, ChatCompletion),
            ("/responses", {"model": "gpt-4o", "input": "hi"}, Response),
            ("/responses", {"model": "gpt-5-mini", "input": HELLO, "instructions": "be kind"}, Response),
            ("/responses", {"model": "gpt-5", "input": "hi", "max_output_tokens": 3}, Response),
            (
                "/responses",
                {
                    "model": "o4-mini",
                    "input": "hi",
                    "tools": [{**TOOL["function"], "strict": True, "type": "function"}],
                },
                Response,
            ),
            ("/completions", {"model": "gpt-3.5-turbo-instruct", "prompt": ["a b", "c"]}, Completion),
            ("/embeddings", {"model": "text-embedding-3-small", "input": ["a", "b"]}, CreateEmbeddingResponse),
        ],
    )
    def test_plain(self, server: FakeProvider, path: str, body: dict[str, Any], shape: type[BaseModel]) -> None:
        """A plain body has every required field, of the right type, under strict validation."""
        status, text = raw(server, path, body)
        assert status == 200
        shape.model_validate_json(text, strict=True)

    @pytest.mark.parametrize("tools", [[], [TOOL]])
    @pytest.mark.parametrize("usage", [True, False])
    def test_chat_chunks(self, server: FakeProvider, tools: list[Any], usage: bool) -> None:
        """Every chunk is a ChatCompletionChunk; usage is in the last one alone, and only when it was asked for."""
        body = {"model": "gpt-5", "messages": HELLO, "stream": True, "tools": tools}
        _, text = raw(
            server, "/chat/completions", body | ({"stream_options": {"include_usage": True}} if usage else {})
        )
        chunks = [ChatCompletionChunk.model_validate_json(json.dumps(event), strict=True) for event in sse_events(text)]
        assert text.endswith("data: [DONE]\n\n")
        assert len({chunk.id for chunk in chunks}) == 1
        assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [usage]
        assert not usage or chunks[-1].choices == []

    @pytest.mark.parametrize("usage", [True, False])
    def test_completion_chunks(self, server: FakeProvider, usage: bool) -> None:
        """Chunks of the legacy endpoint are Completions; usage is in the last one when it was asked for."""
        body = {"model": "davinci", "prompt": ["a b", "c"], "stream": True, "max_tokens": 3}
        options = {"stream_options": {"include_usage": True}} if usage else {}
        _, text = raw(server, "/completions", body | options)
        events = sse_events(text)
        for event in events:
            choices = [{**choice, "finish_reason": choice["finish_reason"] or "stop"} for choice in event["choices"]]
            Completion.model_validate_json(json.dumps(event | {"choices": choices}), strict=True)
        assert [event.get("usage") for event in events if "usage" in event] == (
            [{"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9}] if usage else []
        )
        texts = [
            "".join(choice["text"] for event in events for choice in event["choices"] if choice["index"] == place)
            for place in (0, 1)
        ]
        assert texts == ["we have checked"] * 2

    def test_response_events(self, server: FakeProvider) -> None:
        """A streamed response is the documented sequence of events, numbered, from `created` to `completed`."""
        _, text = raw(server, "/responses", {"model": "gpt-5", "input": "hi", "stream": True})
        adapter: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
        events = [adapter.validate_json(json.dumps(event), strict=True) for event in sse_events(text)]
        assert [event.sequence_number for event in events] == list(range(len(events)))
        kinds = [event.type for event in events if event.type != "response.output_text.delta"]
        assert kinds == [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.output_item.done",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed",
        ]
        assert events[0].response.usage is None
        assert events[-1].response.usage.output_tokens == server.usage_totals()["output_tokens"]

    def test_models(self, client: Any) -> None:
        """The list of models, and one of them."""
        assert "gpt-5-mini" in {model.id for model in client.models.list()}
        assert isinstance(client.models.retrieve("gpt-4o"), Model)

    def test_ids_are_unique_over_servers(self, server: FakeProvider) -> None:
        """No two answers share an id, not even those of two servers."""
        body = {"model": "gpt-4o", "messages": HELLO}
        with FakeProvider() as other:
            found = [json.loads(raw(each, "/chat/completions", body)[1])["id"] for each in (server, other, server)]
        assert len(set(found)) == 3

    def test_created_is_the_clock(self) -> None:
        """`created` comes from the clock that was given."""
        clock = FakeClock()
        with FakeProvider(clock=clock) as server:
            _, text = raw(server, "/chat/completions", {"model": "gpt-4o", "messages": HELLO})
        assert json.loads(text)["created"] == clock.time_ns() // 10**9


class TestThroughTheClient:
    """What the SDK's own helpers make of the answers."""

    def test_parse(self, client: Any) -> None:
        """Structured output is valid JSON of the schema, recursive models included."""

        class Node(BaseModel):
            name: str
            weight: float
            parent: Node | None
            children: list[Node]

        answer = client.chat.completions.parse(model="gpt-4o", messages=HELLO, response_format=Node)
        parsed = answer.choices[0].message.parsed
        assert (parsed.name, parsed.parent, parsed.children[0].name) == ("sample", None, "sample")
        assert client.responses.parse(model="gpt-5", input="hi", text_format=Node).output_parsed == parsed

    def test_stream_helper(self, client: Any) -> None:
        """`.stream()` ends with the same text and usage as a plain call."""
        plain = client.chat.completions.create(model="gpt-4o", messages=HELLO)
        options = {"include_usage": True}
        with client.chat.completions.stream(model="gpt-4o", messages=HELLO, stream_options=options) as stream:
            final = stream.get_final_completion()
        assert final.choices[0].message.content == plain.choices[0].message.content
        assert final.usage == plain.usage

    @pytest.mark.parametrize("stream", [False, True])
    def test_agent_loop(self, client: Any, stream: bool) -> None:
        """A tool is called with arguments of its schema, and after its result comes a text."""
        with client.chat.completions.stream(model="gpt-4o", messages=HELLO, tools=[TOOL]) as streamed:
            message = streamed.get_final_completion().choices[0].message
        if not stream:
            answer = client.chat.completions.create(model="gpt-4o", messages=HELLO, tools=[TOOL])
            assert answer.choices[0].finish_reason == "tool_calls"
            message = answer.choices[0].message
        call = message.tool_calls[0]
        assert (call.function.name, json.loads(call.function.arguments)) == ("find_order", {"order": 1, "deep": True})
        result = {"role": "tool", "tool_call_id": call.id, "content": "found"}
        after = client.chat.completions.create(
            model="gpt-4o", messages=[*HELLO, message.to_dict(), result], tools=[TOOL]
        )
        assert after.choices[0].finish_reason == "stop"

    def test_responses_function_call(self, client: Any) -> None:
        """The responses API streams the arguments of a function call and ends with the item."""
        with client.responses.stream(model="gpt-4o", input="hi", tools=[FLAT_TOOL]) as stream:
            kinds = [event.type for event in stream]
            call = stream.get_final_response().output[-1]
        assert kinds.count("response.function_call_arguments.delta") > 1
        assert json.loads(call.arguments) == {"order": 1, "deep": True}
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "found"}
        after = client.responses.create(model="gpt-4o", input=[call.to_dict(), result], tools=[FLAT_TOOL])
        assert after.output_text

    def test_tool_choice(self, client: Any) -> None:
        """`none` calls nothing, a named function is called whatever was said before."""
        quiet = client.chat.completions.create(model="gpt-4o", messages=HELLO, tools=[TOOL], tool_choice="none")
        named = {"type": "function", "function": {"name": "find_order"}}
        loud = client.chat.completions.create(model="gpt-4o", messages=HELLO, tools=[TOOL], tool_choice=named)
        assert (quiet.choices[0].message.tool_calls, loud.choices[0].finish_reason) == (None, "tool_calls")

    def test_embeddings_are_the_same_in_both_encodings(self, client: Any) -> None:
        """Float and base64 give the same unit vector, of the size that was asked for."""
        sent = {"model": "text-embedding-3-small", "input": "the refund", "dimensions": 8}
        plain = client.embeddings.create(**sent, encoding_format="float").data[0].embedding
        packed = client.embeddings.create(**sent).data[0].embedding
        assert packed == pytest.approx(plain, rel=1e-6)
        assert sum(value * value for value in plain) == pytest.approx(1)
        other = client.embeddings.create(**{**sent, "input": "the parcel"}).data[0].embedding
        assert other != pytest.approx(packed, rel=1e-3)

    async def test_async_client(self, server: FakeProvider) -> None:
        """The asynchronous client gets the same answers."""
        async with openai.AsyncOpenAI(base_url=server.base_url, api_key="test") as client:
            stream = await client.chat.completions.create(model="gpt-4o", messages=HELLO, stream=True)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert len(text.split()) == 16


class TestCounting:
    """What a call will cost can be said beforehand."""

    @pytest.mark.parametrize(
        ("request_", "usage"),
        [
            ({}, (7, 0, 16, 0)),
            ({"max_tokens": 5}, (7, 0, 5, 0)),
            ({"max_completion_tokens": 500}, (7, 0, 16, 0)),
            ({"metadata": {"words": "40"}}, (7, 0, 40, 0)),
            ({"n": 2}, (7, 0, 32, 0)),
            ({"model": "gpt-5"}, (7, 0, 32, 16)),
            ({"model": "gpt-5-chat-latest"}, (7, 0, 16, 0)),
            ({"model": "o3", "reasoning_effort": "high"}, (7, 0, 48, 32)),
            ({"model": "gpt-5", "reasoning_effort": "minimal"}, (7, 0, 16, 0)),
            ({"model": "gpt-5", "max_completion_tokens": 20}, (7, 0, 20, 16)),
            ({"model": "gpt-5", "max_completion_tokens": 3}, (7, 0, 3, 3)),
        ],
    )
    def test_chat(self, server: FakeProvider, request_: dict[str, Any], usage: tuple[int, ...]) -> None:
        """Words and 4 a message in; words, or what was asked for, or the limit out; thinking is a part of it."""
        raw(server, "/chat/completions", {"model": "gpt-4o", "messages": HELLO, **request_})
        assert tuple(server.bill[0].totals.values()) == usage

    @pytest.mark.parametrize(("limit", "reason"), [(15, "length"), (16, "stop"), (17, "stop")])
    def test_finish_reason(self, client: Any, limit: int, reason: str) -> None:
        """`length` is said when the limit cut the answer, and only then; the text has as many words as were billed."""
        answer = client.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=limit)
        assert answer.choices[0].finish_reason == reason
        assert len(answer.choices[0].message.content.split()) == answer.usage.completion_tokens

    def test_incomplete_response(self, client: Any) -> None:
        """The responses API says `incomplete` and why; a stream ends with that event."""
        answer = client.responses.create(model="gpt-4o", input="hi", max_output_tokens=4)
        assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        last = list(client.responses.create(model="gpt-4o", input="hi", max_output_tokens=4, stream=True))[-1]
        assert (last.type, last.response.usage) == ("response.incomplete", answer.usage)

    def test_thinking_can_use_up_the_limit(self, client: Any) -> None:
        """A limit below the thinking leaves no text, as with the real thing."""
        answer = client.responses.create(model="gpt-5", input="hi", max_output_tokens=4)
        assert (answer.output_text, [item.type for item in answer.output]) == ("", ["reasoning"])

    def test_header_asks_for_exact_counts(self, client: Any, server: FakeProvider) -> None:
        """The headers decide both counts, reasoning included."""
        client.chat.completions.create(
            model="gpt-5",
            messages=HELLO,
            extra_headers={"x-fake-output-tokens": "20", "x-fake-input-tokens": "3"},
        )
        assert server.bill[-1].totals == {
            "input_tokens": 3,
            "cached_tokens": 0,
            "output_tokens": 20,
            "reasoning_tokens": 10,
        }

    def test_cached_prefix(self, client: Any, server: FakeProvider) -> None:
        """A long first message that was seen before, by the same model, is cached; the last message never is."""
        system = {"role": "system", "content": "be kind " * 50}

        def cached(model: str, text: str, first: dict[str, str] = system) -> int:
            messages = [first, {"role": "user", "content": text}]
            used = client.chat.completions.create(model=model, messages=messages).usage
            return int(used.prompt_tokens_details.cached_tokens)

        assert [cached("gpt-4o", "one"), cached("gpt-4o", "two"), cached("gpt-4o", "two")] == [0, 104, 104]
        assert cached("gpt-4o-mini", "one") == 0
        assert cached("gpt-4o", "one", {"role": "system", "content": "be kind"}) == 0
        assert server.usage_totals()["cached_tokens"] == 208

    def test_images_and_text_parts(self, server: FakeProvider) -> None:
        """Parts of a message count as text or as an image."""
        parts = [
            {"type": "text", "text": "what is this"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        ]
        raw(server, "/chat/completions", {"model": "gpt-4o", "messages": [{"role": "user", "content": parts}]})
        assert server.bill[0].usage["prompt_tokens"] == 4 + 3 + 85

    @pytest.mark.parametrize("tokens", [4, 5, 6, 100, 5000])
    def test_prompt_of_exact_size(self, server: FakeProvider, tokens: int) -> None:
        """The trace's prompts are counted as exactly as many tokens as they were made for."""
        messages = [{"role": "user", "content": prompt_of(tokens, 17)}]
        raw(server, "/chat/completions", {"model": "gpt-4o", "messages": messages})
        assert server.bill[0].usage["prompt_tokens"] == tokens

    def test_completions_and_embeddings(self, server: FakeProvider) -> None:
        """The endpoints without messages count words or token ids."""
        raw(server, "/completions", {"model": "davinci", "prompt": "a b c", "max_tokens": 7})
        raw(server, "/embeddings", {"model": "text-embedding-3-small", "input": [[1, 2, 3], [4]]})
        assert [line.usage["prompt_tokens"] for line in server.bill] == [3, 4]
        assert server.usage_totals("davinci")["output_tokens"] == 7


class TestBill:
    """The server's own account of what it served."""

    def test_bill_says_what_the_client_was_told(self, client: Any, server: FakeProvider) -> None:
        """Each line has the usage that the client saw; totals are their sums."""
        first = client.chat.completions.create(model="gpt-4o", messages=HELLO)
        second = client.responses.create(model="gpt-5", input="hi")
        client.embeddings.create(model="text-embedding-3-small", input="a b")
        bill = server.bill
        assert [(line.endpoint, line.model, line.id) for line in bill] == [
            ("chat", "gpt-4o", first.id),
            ("responses", "gpt-5", second.id),
            ("embeddings", "text-embedding-3-small", ""),
        ]
        assert server.usage_totals() == {
            "calls": 3,
            "input_tokens": first.usage.prompt_tokens + second.usage.input_tokens + 2,
            "cached_tokens": 0,
            "output_tokens": first.usage.completion_tokens + second.usage.output_tokens,
            "reasoning_tokens": second.usage.output_tokens_details.reasoning_tokens,
        }
        assert server.requests == 3

    def test_a_stream_is_billed_in_full(self, client: Any, server: FakeProvider) -> None:
        """A stream that does not show its usage, and is left after one chunk, is on the bill all the same."""
        with client.chat.completions.create(model="gpt-4o", messages=HELLO, stream=True) as stream:
            next(iter(stream))
        assert (server.bill[0].stream, server.bill[0].usage["completion_tokens"]) == (True, 16)

    def test_many_threads(self, server: FakeProvider) -> None:
        """Every call of many threads is on the bill, once."""

        def work() -> None:
            with openai.OpenAI(base_url=server.base_url, api_key="test") as client:
                for _ in range(5):
                    client.chat.completions.create(model="gpt-4o", messages=HELLO)

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (server.usage_totals()["calls"], len({line.id for line in server.bill})) == (30, 30)


class TestFaults:
    """Failures on demand."""

    def test_error_then_success(self, client: Any, server: FakeProvider) -> None:
        """A 500 is retried by the SDK; it is a request, but nobody is billed for it."""
        server.fail_next(500)
        client.chat.completions.create(model="gpt-4o", messages=HELLO)
        assert (server.requests, len(server.bill)) == (2, 1)

    def test_errors_have_the_sdk_types(self, client: Any, server: FakeProvider) -> None:
        """The status decides the exception, and the body says why."""
        server.fail_next(429, times=3, message="slow down", x_ratelimit_remaining_requests="0")
        with pytest.raises(openai.RateLimitError, match="slow down") as caught:
            client.chat.completions.create(model="gpt-4o", messages=HELLO)
        assert caught.value.response.headers["x-ratelimit-remaining-requests"] == "0"
        server.fail_next(401)
        with pytest.raises(openai.AuthenticationError):
            client.models.list()

    def test_cut_stream(self, client: Any, server: FakeProvider) -> None:
        """A cut stream gives its first events and then a connection error."""
        server.cut_stream_after(3)
        seen = []
        with pytest.raises(Exception, match=r"(?i)peer closed|incomplete|disconnect|connection"):
            seen.extend(client.chat.completions.create(model="gpt-4o", messages=HELLO, stream=True))
        assert (len(seen), server.bill[0].complete) == (3, False)
        assert len(list(client.chat.completions.create(model="gpt-4o", messages=HELLO, stream=True))) == 18

    def test_cut_before_the_first_event(self, client: Any, server: FakeProvider) -> None:
        """Nothing at all may come, too."""
        server.cut_stream_after(0)
        with pytest.raises(Exception, match=r"(?i)peer closed|incomplete|disconnect|connection"):
            list(client.responses.create(model="gpt-4o", input="hi", stream=True))

    @pytest.mark.parametrize(
        ("path", "body", "status", "told"),
        [
            ("/chat/completions", {"messages": HELLO}, 400, "'model'"),
            ("/chat/completions", {"model": "gpt-4o", "messages": []}, 400, "'messages'"),
            ("/chat/completions", {"model": "gpt-4o", "messages": ["hi"]}, 400, "message"),
            ("/chat/completions", {"model": "gpt-4o", "messages": HELLO, "max_tokens": 0}, 400, "max_tokens"),
            ("/chat/completions", {"model": "gpt-4o", "messages": HELLO, "n": 0.5}, 400, "'n'"),
            ("/chat/completions", {"model": "gpt-4o", "messages": HELLO, "metadata": {"words": "x"}}, 400, "words"),
            ("/chat/completions", "{", 400, "parse"),
            ("/chat/completions", "[]", 400, "object"),
            ("/responses", {"model": "gpt-4o"}, 400, "'input'"),
            ("/embeddings", {"model": "e", "input": ""}, 400, "empty"),
            ("/embeddings", {"model": "e", "input": 5}, 400, "text"),
            ("/nowhere", {}, 404, "/v1/nowhere"),
        ],
    )
    def test_bad_requests(self, server: FakeProvider, path: str, body: object, status: int, told: str) -> None:
        """A wrong request is refused in the provider's words, naming the parameter, and is not billed."""
        got, text = raw(server, path, body)
        assert (got, server.bill) == (status, [])
        assert told in json.loads(text)["error"]["message"]

    def test_wrong_settings(self) -> None:
        """Wrong arguments are refused before anything starts."""
        for make in (
            lambda: FakeProvider(words=-1),
            lambda: FakeProvider(cache_from=0),
            lambda: FakeProvider().fail_next(200),
            lambda: FakeProvider().fail_next(500, times=0),
            lambda: FakeProvider().cut_stream_after(-1),
            lambda: FakeProvider().base_url,
        ):
            with pytest.raises(ConfigurationError):
                make()


class TestLife:
    """Starting and stopping."""

    def test_leaves_nothing_behind(self) -> None:
        """After `stop()` there is no thread, and the port is closed, although a client is still connected."""
        before = set(threading.enumerate())
        server = FakeProvider().start()
        with openai.OpenAI(base_url=server.base_url, api_key="test") as client:
            client.chat.completions.create(model="gpt-4o", messages=HELLO)
            port = int(server.base_url.rpartition(":")[2].removesuffix("/v1"))
            server.stop()
        assert set(threading.enumerate()) == before
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        server.stop()

    def test_stops_while_an_answer_waits(self) -> None:
        """A delay does not hold up the end."""
        with FakeProvider(delay=3600) as server, socket.create_connection(_address(server)) as connection:
            connection.sendall(b"GET /v1/models HTTP/1.1\r\n\r\n")
            while not server.requests:
                pass
        assert server.bill == []

    def test_starts_once(self, server: FakeProvider) -> None:
        """A second start is refused; after a stop it may start again, with its bill."""
        with pytest.raises(ConfigurationError, match="running"):
            server.start()

    def test_only_loopback(self, server: FakeProvider) -> None:
        """It listens on 127.0.0.1 and nowhere else."""
        assert server.base_url.startswith("http://127.0.0.1:")

    @pytest.mark.parametrize(
        "sent",
        [
            b"nonsense\r\n\r\n",
            b"POST / HTTP/1.1\r\ncontent-length: -5\r\n\r\n",
            b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n",
            b"POST / HTTP/1.1\r\ncontent-length: 99999999999\r\n\r\n",
        ],
    )
    def test_no_http(self, server: FakeProvider, sent: bytes) -> None:
        """What is no HTTP/1.1 with a length gets a 400 and a closed connection."""
        with socket.create_connection(_address(server)) as connection:
            connection.sendall(sent)
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 400")

    def test_a_client_that_leaves(self, server: FakeProvider) -> None:
        """A client that hangs up in the middle of a request is forgotten, and the next one is served."""
        with socket.create_connection(_address(server)) as connection:
            connection.sendall(b"POST /v1/responses HTTP/1.1\r\ncontent-length: 50\r\n\r\n{")
        assert raw(server, "/models", "", "GET")[0] == 200

    def test_expect_continue(self, server: FakeProvider) -> None:
        """A client that asks first is told to go on."""
        with socket.create_connection(_address(server)) as connection:
            connection.sendall(b"POST /v1/no HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
            assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
            connection.sendall(b"{}")
            assert connection.recv(1000).startswith(b"HTTP/1.1 404 Not Found")

    def test_requests_in_pieces(self, server: FakeProvider) -> None:
        """A request may arrive byte by byte, and two at once are both answered."""
        request = b"GET /v1/models/a HTTP/1.1\r\nhost: x\r\n\r\n"
        with socket.create_connection(_address(server)) as connection:
            for byte in request:
                connection.sendall(bytes([byte]))
            first = connection.recv(65536)
            connection.sendall(request + request.replace(b"host: x", b"connection: close"))
            both = b"".join(iter(lambda: connection.recv(65536), b""))
        assert both == first + first


def _address(server: FakeProvider) -> tuple[str, int]:
    host, _, port = server.base_url.removeprefix("http://").removesuffix("/v1").partition(":")
    return host, int(port)
