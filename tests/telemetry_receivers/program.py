"""A program as somebody writes it: `init(otlp=...)`, real openai clients, tags, a budget. It prints the rows of its ledger as JSON.

    program.py OTLP_ENDPOINT

`OPENAI_BASE_URL` is a provider on loopback; everything else is told by the environment.
"""

from __future__ import annotations

import json
import sys

import openai

import aifinops as af
from aifinops import runtime


def main() -> None:
    af.init(otlp=sys.argv[1], tags={"team": "search"}, metric_tags=["team"])
    af.instrument()
    client = openai.OpenAI(api_key="test")
    asked = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "hi"}]}
    with af.track("answer", feature="rerank"), af.budget("$1", per="day", name="search"):
        client.chat.completions.create(**asked)  # type: ignore[call-overload]
        stream = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})  # type: ignore[call-overload]
        for _ in stream:
            pass
    client.embeddings.create(model="text-embedding-3-small", input="hi")
    client.close()
    flushed = af.flush(20)
    rows = sorted(runtime.get().ledger.rows(), key=lambda charge: charge.at)
    told = ("id", "operation", "model", "amount", "currency", "trace_id", "span_id", "response_id", "stream")
    found = [{name: getattr(row, name) for name in told} | {"quantities": dict(row.quantities)} for row in rows]
    sys.stdout.write(f"{flushed}\n{json.dumps(found)}\n")
    af.shutdown()


if __name__ == "__main__":
    main()
