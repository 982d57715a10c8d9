"""Whether backends that price spans by themselves come to the cost that our ledger has, from our spans alone.

    python benchmarks/backends_agree.py phoenix --traces http://127.0.0.1:6006/v1/traces --api http://127.0.0.1:6006
    python benchmarks/backends_agree.py mlflow --traces http://127.0.0.1:5000/v1/traces --api http://127.0.0.1:5000

The server is yours to start (`phoenix serve`, `mlflow server`). Real openai clients make calls of several models, plain and streamed, with
cached and reasoning tokens, against a provider on loopback; the spans go out over OTLP/HTTP without any dialect, so that what the server
knows are tokens, models and providers. The exit status is 1 where a call has another cost there than here by more than a rounding error.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

MODELS = ("gpt-4o", "gpt-4o-mini", "gpt-4.1", "gpt-4.1-nano", "o3-mini")
PROJECT = "aifinops"


def ask(url: str, body: Any = None, **headers: str) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json", **headers})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())


def make_calls(count: int) -> dict[str, Any]:
    """Calls of all kinds; id of the span -> its row."""
    import openai

    import aifinops as af
    from aifinops import runtime
    from aifinops.testing import FakeProvider

    af.init(ledger="memory", dialects=["none"])
    af.instrument()
    with FakeProvider() as provider:
        client = openai.OpenAI(base_url=provider.base_url, api_key="test")
        for number in range(count):
            model, long = MODELS[number % len(MODELS)], "context " * (40 * (number % 7))
            messages: Any = [
                {"role": "system", "content": f"{long}{number % 3}"},
                {"role": "user", "content": f"q {number}"},
            ]
            asked: dict[str, Any] = {"model": model, "messages": messages, "metadata": {"words": str(5 + number % 90)}}
            if number % 4:
                client.chat.completions.create(**asked)
            else:
                for _ in client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
                    pass
        client.close()
    if not af.flush(60):
        raise SystemExit("the server did not take the spans")
    return {row.span_id: row for row in runtime.get().ledger.rows()}


def phoenix(api: str) -> Iterator[tuple[str, float | None]]:
    """(id of a span, its cost there), as Phoenix's GraphQL tells it."""
    query = """query ($after: String) { projects { edges { node { name
        spans(first: 200, after: $after) { pageInfo { hasNextPage endCursor }
            edges { node { spanId spanKind costSummary { total { cost } } } } } } } } }"""
    after = None
    while True:
        projects = ask(f"{api}/graphql", {"query": query, "variables": {"after": after}})["data"]["projects"]["edges"]
        (found,) = [one["node"] for one in projects if one["node"]["name"] == PROJECT]
        for edge in found["spans"]["edges"]:
            yield edge["node"]["spanId"], edge["node"]["costSummary"]["total"]["cost"]
        page = found["spans"]["pageInfo"]
        if not page["hasNextPage"]:
            return
        after = page["endCursor"]


def mlflow(api: str) -> Iterator[tuple[str, float | None]]:
    """Likewise from MLflow's traces, each of which has one span here."""
    token = None
    while True:
        body = {
            "locations": [{"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": "0"}}],
            "max_results": 200,
        }
        found = ask(f"{api}/api/3.0/mlflow/traces/search", {**body, **({"page_token": token} if token else {})})
        for trace in found.get("traces", []):
            full = ask(f"{api}/api/3.0/mlflow/traces/get?trace_id={trace['trace_id']}")
            for span in full["trace"]["spans"]:
                told = {one["key"]: one["value"] for one in span["attributes"]}
                cost = told.get("mlflow.llm.cost")
                yield _hex(span["span_id"]), None if cost is None else _number(cost)
        token = found.get("next_page_token")
        if not token:
            return


def _hex(text: str) -> str:
    import base64

    return text if len(text) == 16 else base64.b64decode(text).hex()


def _number(value: Any) -> float | None:
    if "string_value" in value:
        return json.loads(value["string_value"]).get("total_cost")
    pairs = {one["key"]: one["value"] for one in value.get("kvlist_value", {}).get("values", [])}
    return float(pairs["total_cost"]["double_value"]) if "total_cost" in pairs else None


SERVERS: dict[str, tuple[Callable[[str], Iterator[tuple[str, float | None]]], dict[str, str]]] = {
    "phoenix": (phoenix, {"OTEL_RESOURCE_ATTRIBUTES": f"openinference.project.name={PROJECT}"}),
    "mlflow": (mlflow, {"OTEL_EXPORTER_OTLP_TRACES_HEADERS": "x-mlflow-experiment-id=0"}),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", choices=SERVERS)
    parser.add_argument("--traces", required=True, help="where its OTLP/HTTP receiver takes spans")
    parser.add_argument("--api", required=True, help="where it answers")
    parser.add_argument("--calls", type=int, default=400)
    options = parser.parse_args()
    read, variables = SERVERS[options.server]
    os.environ |= {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": options.traces, "OTEL_METRICS_EXPORTER": "none", **variables}
    os.environ["AIFINOPS_LEDGER"] = "memory"
    rows = make_calls(options.calls)
    known: dict[str, float | None] = {}
    for _ in range(60):  # they price in the background
        known = dict(read(options.api))
        if all(known.get(id) is not None for id in rows):
            break
        time.sleep(1)
    return judge(rows, known)


def judge(rows: dict[str, Any], known: dict[str, float | None]) -> int:
    wrong, ours, theirs = 0, 0.0, 0.0
    for id, row in rows.items():
        cost, amount = known.get(id), row.amount / 10**9
        ours += amount
        theirs += cost or 0.0
        if cost is None or abs(cost - amount) > 2e-9:  # ours is rounded up to a nano-dollar
            wrong += 1
            if wrong <= 5:
                print(f"{row.model} {dict(row.quantities)}: {amount:.9f} here, {cost} there")
    missing = sum(known.get(id) is None for id in rows)
    cached = sum("cache_read_tokens" in row.quantities for row in rows.values())
    print(
        f"{len(rows)} calls ({cached} with cached tokens), {len(rows) - missing} priced there; {ours:.9f} USD here, {theirs:.9f} USD there; {wrong} differ"
    )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
