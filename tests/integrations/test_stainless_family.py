"""What all client libraries of the family have in common: patched on import, one client alone, taken back exactly."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from typing import Any

import pytest

import aifinops as af
from aifinops import runtime
from aifinops.charges import Charge
from aifinops.integrations import registry
from aifinops.testing.wire import CANARY, Wire

pytestmark = pytest.mark.filterwarnings("ignore:The model 'claude:DeprecationWarning")

ASK = [{"role": "user", "content": CANARY}]
CHAT = {
    "id": "c1", "object": "chat.completion", "created": 1794304800, "model": "answered",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": CANARY}}],
    "usage": {"prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1200},
}  # fmt: skip
MESSAGE = {
    "id": "c1", "type": "message", "role": "assistant", "model": "answered", "stop_reason": "end_turn", "stop_sequence": None,
    "content": [{"type": "text", "text": CANARY}], "usage": {"input_tokens": 1000, "output_tokens": 200},
}  # fmt: skip

# library -> (module, class, path, model that is in the price list, answer)
LIBRARIES: dict[str, tuple[str, str, str, str, dict[str, Any]]] = {
    "openai": ("openai", "OpenAI", "/chat/completions", "gpt-4o-mini", CHAT),
    "anthropic": ("anthropic", "Anthropic", "/v1/messages", "claude-sonnet-4-5", MESSAGE),
    "groq": ("groq", "Groq", "/openai/v1/chat/completions", "llama-3.3-70b-versatile", CHAT),
    "together": ("together", "Together", "/v1/chat/completions", "meta-llama/Llama-3.3-70B-Instruct-Turbo", CHAT),
    "cerebras": ("cerebras.cloud.sdk", "Cerebras", "/v1/chat/completions", "gpt-oss-120b", CHAT),
}


@pytest.fixture
def wire() -> Any:
    with Wire() as running:
        yield running


@pytest.fixture(autouse=True)
def taken_back() -> Any:
    yield
    af.uninstrument()


def module(name: str) -> Any:
    return pytest.importorskip(LIBRARIES[name][0])


def make(name: str, wire: Wire, prefix: str = "") -> Any:
    loaded = module(name)
    _, _, path, model, answer = LIBRARIES[name]
    wire.answers[f"POST {path}"] = {**answer, "model": model}
    more = {"warm_tcp_connection": False} if name == "cerebras" else {}
    return getattr(loaded, prefix + LIBRARIES[name][1])(base_url=wire.url, api_key="test", max_retries=0, **more)


def create(name: str, client: Any, **more: Any) -> Any:
    ask = {"model": LIBRARIES[name][3], "messages": ASK, "max_tokens": 300, **more}
    return client.messages.create(**ask) if name == "anthropic" else client.chat.completions.create(**ask)


def rows() -> list[Charge]:
    af.flush()
    found = list(runtime.get().ledger.rows())
    assert CANARY not in repr(found)
    return found


def exact(name: str, charge: Charge) -> None:
    _, _, _, model, _ = LIBRARIES[name]
    counts = {"input_tokens": 1000, "output_tokens": 200}
    price = af.price(model, provider=name, **counts)
    assert (charge.provider, charge.model, dict(charge.quantities)) == (name, model, counts)
    assert price.amount is not None
    assert (charge.basis, charge.amount, charge.response_id) == ("priced", price.amount * 10**9, "c1")


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_call_of_each_library_is_one_exact_row(name: str, wire: Wire) -> None:
    """Provider, model, buckets and price of each library; a client made before `instrument()` is metered too."""
    with make(name, wire) as client:
        af.instrument(name)
        create(name, client)
        create(name, client.with_options(timeout=9))
    first, second = rows()
    exact(name, first)
    exact(name, second)


@pytest.mark.parametrize("name", LIBRARIES)
async def test_an_async_call_of_each_library_is_one_exact_row(name: str, wire: Wire) -> None:
    """The same in the other colour."""
    module(name)
    af.instrument(name)
    async with make(name, wire, "Async") as client:
        await create(name, client)
    (charge,) = rows()
    exact(name, charge)


def _chunks(name: str) -> list[Any]:
    model, head = LIBRARIES[name][3], {"id": "c1", "object": "chat.completion.chunk", "created": 1794304800}
    if name == "anthropic":
        start = {**MESSAGE, "model": model, "content": [], "usage": {"input_tokens": 1000, "output_tokens": 1}}
        end = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 200}}
        made = [{"type": "message_start", "message": start}, end, {"type": "message_stop"}]
        return [(event["type"], event) for event in made]
    text = {"choices": [{"index": 0, "delta": {"content": CANARY}, "finish_reason": None}]}
    # Groq says it in a field of its own.
    usage = {"x_groq": {"id": "r", "usage": CHAT["usage"]}} if name == "groq" else {"usage": CHAT["usage"]}
    return [{**head, "model": model, **text}, {**head, "model": model, "choices": [], **usage}, "[DONE]"]


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_stream_of_each_library_is_one_exact_row(name: str, wire: Wire) -> None:
    """The usage at the end of the stream, wherever this provider puts it."""
    module(name)
    af.instrument(name)
    with make(name, wire) as client:
        wire.answers[f"POST {LIBRARIES[name][2]}"] = _chunks(name)
        assert list(create(name, client, stream=True))
    (charge,) = rows()
    exact(name, charge)
    assert charge.stream


@pytest.mark.parametrize("name", LIBRARIES)
def test_one_client_of_each_library(name: str, wire: Wire) -> None:
    """`instrument(client)` meters that one client; it is taken back without a trace."""
    with make(name, wire) as metered, make(name, wire) as plain:
        _ = metered.messages if name == "anthropic" else metered.chat  # the library keeps it on the client
        before = dict(vars(metered))
        af.instrument(metered)
        create(name, metered)
        create(name, plain)
        assert len(rows()) == 1
        af.uninstrument()
        create(name, metered)
        assert len(rows()) == 1
        assert vars(metered).keys() == before.keys()


@pytest.mark.parametrize("name", LIBRARIES)
def test_uninstrument_leaves_the_classes_as_they_were(name: str) -> None:
    """Every attribute of both base clients is the very object that it was."""
    module(name)
    base = importlib.import_module(f"{LIBRARIES[name][0]}._base_client")
    classes = [base.BaseClient, base.SyncAPIClient, base.AsyncAPIClient]
    before = [dict(vars(one)) for one in classes]
    af.instrument(name)
    assert vars(classes[1])["request"] is not before[1]["request"]
    af.instrument(name)
    af.uninstrument()
    for one, old in zip(classes, before, strict=True):
        assert vars(one).keys() == old.keys()
        assert all(vars(one)[key] is value for key, value in old.items())


@pytest.mark.parametrize("name", LIBRARIES)
def test_other_patchers_may_come_before_and_after(name: str, wire: Wire) -> None:
    """Someone else's wrapper below and above ours: one row, and theirs stays when ours goes."""
    loaded = module(name)
    base = importlib.import_module(f"{LIBRARIES[name][0]}._base_client").SyncAPIClient
    own, seen = base.request, []

    def wrapping(inner: Callable[..., Any], mark: str) -> Callable[..., Any]:
        def request(self: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append(mark)
            return inner(self, *args, **kwargs)

        return request

    try:
        base.request = wrapping(own, "below")
        af.instrument(name)
        base.request = wrapping(base.request, "above")
        with make(name, wire) as client:
            create(name, client)
            assert (seen, len(rows())) == (["above", "below"], 1)
            af.uninstrument()
            create(name, client)
            assert (seen[2:], len(rows())) == (["above", "below"], 1)
    finally:
        base.request = own
    assert loaded


def test_a_library_that_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for one inside of a package that is missing altogether."""
    for loaded in [name for name in sys.modules if name.partition(".")[0] == "cerebras"]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    with pytest.raises(af.ConfigurationError, match="pip install cerebras-cloud-sdk"):
        af.instrument("cerebras")


def test_every_library_is_instrumented_by_default() -> None:
    """`instrument()` waits for each, without importing any."""
    af.instrument()
    assert registry.PROVIDERS.keys() <= registry.state().keys()


def test_a_body_that_is_cut_in_half_raises_as_before_and_is_not_free(wire: Wire) -> None:
    """Truncated JSON in a 200: the library's own error, and a row that does not say zero."""
    openai = module("openai")
    wire.answers["POST /chat/completions"] = ("application/json", json.dumps(CHAT).encode()[:40])
    errors = []
    for metered in (False, True):
        if metered:
            af.instrument("openai")
        with openai.OpenAI(base_url=wire.url, api_key="test", max_retries=0) as client:
            try:
                create("openai", client)
            except Exception as error:
                errors.append(type(error))
    (charge,) = rows()
    assert errors[0] is errors[1]
    assert charge.amount != 0
    assert charge.basis in {"estimated", "unknown"}
