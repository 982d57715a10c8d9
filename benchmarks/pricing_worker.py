"""One pricing engine in one process.

    pricing_worker.py SYSTEM             reads lines "OPERATION COUNT" from standard input, answers one JSON line each
    pricing_worker.py SYSTEM OPERATION   the first price of a fresh process: import, load and price, once, in one JSON line

An operation is one way of asking for the same price: 1000 input tokens, 600 of them cached, and 200 output tokens of gpt-4o, which is
0.00375 USD. `counts` gives the numbers, `chat` and `responses` a raw body as a dict, `engine` asks the inner engine for the integers of
the ledger, and `book` the price book without anything around it. Time is CPU time of the whole process; memory is its peak resident set
above that of the interpreter before the import. LiteLLM reads the prices in its wheel, as no system here may use the network.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

Operations = dict[str, Callable[[], Any]]

MODEL = "gpt-4o"
CHAT = {
    "id": "chatcmpl-bench", "object": "chat.completion", "created": 1700000000, "model": "gpt-4o-2024-08-06",
    "choices": [{"index": 0, "finish_reason": "stop", "logprobs": None,
                 "message": {"role": "assistant", "content": "word " * 80, "refusal": None}}],
    "usage": {"prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1200,
              "prompt_tokens_details": {"cached_tokens": 600, "audio_tokens": 0},
              "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0, "accepted_prediction_tokens": 0,
                                            "rejected_prediction_tokens": 0}},
    "service_tier": "default", "system_fingerprint": "fp_bench",
}  # fmt: skip
RESPONSE = {
    "id": "resp_bench", "object": "response", "created_at": 1700000000, "status": "completed", "model": "gpt-4o-2024-08-06",
    "error": None, "incomplete_details": None, "instructions": None, "metadata": {}, "parallel_tool_calls": True,
    "temperature": 1.0, "tool_choice": "auto", "tools": [], "top_p": 1.0, "service_tier": "default",
    "output": [{"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
                "content": [{"type": "output_text", "text": "word " * 80, "annotations": [], "logprobs": []}]}],
    "usage": {"input_tokens": 1000, "input_tokens_details": {"cached_tokens": 600}, "output_tokens": 200,
              "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 1200},
}  # fmt: skip


def aifinops() -> Operations:
    import aifinops as af

    def engine() -> Callable[[], Any]:
        from aifinops.pricing.book import PriceBook

        book, now, quantities = (
            PriceBook(),
            time.time_ns(),
            {"input_tokens": 400, "cache_read_tokens": 600, "output_tokens": 200},
        )
        return lambda: book.amounts("openai", MODEL, quantities, at=now)

    def book() -> Callable[[], Any]:
        from aifinops.pricing.book import PriceBook
        from aifinops.usage import Sku, Usage

        made, now = PriceBook(), time.time_ns()
        usage = Usage({"input_tokens": 400, "cache_read_tokens": 600, "output_tokens": 200}, Sku("openai", MODEL), now)
        return lambda: made.price(usage)

    return {
        "counts": lambda: af.price(MODEL, input_tokens=400, cache_read_tokens=600, output_tokens=200),
        "chat": lambda: af.price_response(CHAT, provider="openai"),
        "responses": lambda: af.price_response(RESPONSE, provider="openai"),
        "engine": _later(engine),
        "book": _later(book),
    }  # fmt: skip


def _later(make: Callable[[], Callable[[], Any]]) -> Callable[[], Any]:
    """A call that is prepared when it is first made, so that the first price of a process pays for its preparation."""
    made: list[Callable[[], Any]] = []

    def call() -> Any:
        if not made:
            made.append(make())
        return made[0]()

    return call


def genai_prices() -> Operations:
    from genai_prices import Usage, calc_price, extract_usage

    return {
        "counts": lambda: calc_price(
            Usage(input_tokens=1000, cache_read_tokens=600, output_tokens=200), MODEL, provider_id="openai"
        ).total_price,
        "chat": lambda: extract_usage(CHAT, provider_id="openai", api_flavor="chat").calc_price().total_price,
        "responses": lambda: extract_usage(RESPONSE, provider_id="openai", api_flavor="responses").calc_price().total_price,
    }  # fmt: skip


def litellm() -> Operations:
    import os

    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    import litellm

    answer = litellm.ModelResponse(**CHAT)
    return {
        "counts": lambda: sum(
            litellm.cost_per_token(model=MODEL, prompt_tokens=1000, completion_tokens=200, cache_read_input_tokens=600)
        ),
        "chat": lambda: litellm.completion_cost(completion_response=CHAT, model=MODEL),
        "chat, its own object": lambda: litellm.completion_cost(completion_response=answer),
        "responses": lambda: litellm.completion_cost(completion_response=RESPONSE, model=MODEL, call_type="responses"),
    }


def tokencost() -> Operations:
    from tokencost import calculate_cost_by_tokens

    return {
        "counts": lambda: (
            calculate_cost_by_tokens(400, MODEL, "input")
            + calculate_cost_by_tokens(600, MODEL, "cached")
            + calculate_cost_by_tokens(200, MODEL, "output")
        )
    }


def openai_cost_calculator() -> Operations:
    from openai_cost_calculator import calculate_cost, estimate_response_cost

    return {
        "counts": lambda: (
            calculate_cost("openai", MODEL, input_tokens=400, output_tokens=200, cached_input_tokens=600).total
        ),
        "chat": lambda: estimate_response_cost(CHAT, provider="openai").total,
        "responses": lambda: estimate_response_cost(RESPONSE, provider="openai").total,
    }


SYSTEMS = {
    "aifinops": aifinops,
    "genai-prices": genai_prices,
    "litellm": litellm,
    "tokencost": tokencost,
    "openai-cost-calculator": openai_cost_calculator,
}


def amount(answer: Any) -> float:
    """USD of any answer: a Cost, the integers of the ledger, a Decimal or a float."""
    value = getattr(answer, "amount", answer)
    return value / 1e9 if type(value) is int else float(value)


def peak_kib() -> int:
    """Peak resident set of this process. `getrusage` will not do: on Linux it remembers the parent's."""
    try:
        with open("/proc/self/status") as file:  # noqa: PTH123  (pathlib would be an import more)
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak // 1024 if sys.platform == "darwin" else peak


def first(system: str, operation: str) -> dict[str, Any]:
    before, start = peak_kib(), time.perf_counter_ns()
    call = SYSTEMS[system]()[operation]
    imported = time.perf_counter_ns()
    answer = call()
    done = time.perf_counter_ns()
    return {
        "import_ms": (imported - start) / 1e6, "price_ms": (done - imported) / 1e6, "total_ms": (done - start) / 1e6,
        "added_mib": (peak_kib() - before) / 1024, "modules": len(sys.modules), "amount": amount(answer),
    }  # fmt: skip


def rounds(system: str) -> None:
    import json
    from importlib.metadata import version

    operations = SYSTEMS[system]()
    found, refused = {}, {}
    for name, call in operations.items():
        try:
            found[name] = amount(call())
        except Exception as error:
            refused[name] = f"{type(error).__name__}: {error}"[:200]
    about = {"system": system, "version": version(system), "amounts": found, "refused": refused}
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        operation, _, count = line.strip().rpartition(" ")
        call, times = operations[operation], range(int(count))
        cpu, wall = time.process_time_ns(), time.perf_counter_ns()
        for _ in times:
            call()
        cpu, wall = time.process_time_ns() - cpu, time.perf_counter_ns() - wall
        print(json.dumps({"cpu_us": cpu / 1000 / int(count), "wall_us": wall / 1000 / int(count)}), flush=True)


def main() -> None:
    if len(sys.argv) > 2:
        found = first(sys.argv[1], sys.argv[2])
        import json

        print(json.dumps(found))
    else:
        rounds(sys.argv[1])


if __name__ == "__main__":
    main()
