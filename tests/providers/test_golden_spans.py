"""Golden spans: of every form of answer of every provider the exact name, kind and attributes, kept in `golden_spans.json`.

`python tests/providers/test_golden_spans.py` writes the file anew; what it changes is what receivers will see changed. Prices change with
each list: of costs the names are kept, and the total is compared with what the answer costs.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from aifinops import metering, runtime
from aifinops.integrations.responses import _read
from aifinops.telemetry import names
from aifinops.testing import FakeClock

HERE = Path(__file__).parent
GOLDEN = HERE / "golden_spans.json"
AT = 1_794_312_000 * 10**9
"""10 November 2026, 12:00 UTC."""


def _cases() -> Any:
    """The bodies and what they mean, from the module beside this one."""
    spec = importlib.util.spec_from_file_location("golden_bodies", HERE / "test_golden.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    return module.CASES


CASES = _cases()
OPERATIONS = {
    "embed": "embeddings", "rerank": "rerank", "image": "image_generation", "speech": "speech", "transcri": "transcription", "moder": "moderation",
    "generat": "text_completion", "completion": "text_completion",
}  # fmt: skip


def operation_of(name: str) -> str:
    return next((operation for word, operation in OPERATIONS.items() if word in name.partition("/")[2]), "chat")


def span_of(case: Any, body: Any) -> Any:
    """The one span of a call that was answered so."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    engines = runtime.init(ledger="memory", clock=FakeClock(AT))
    assert engines.spans is not None
    engines.spans._get_provider = lambda: provider
    reading = _read(body, case.provider)[0]
    call = metering.Call(case.provider, operation_of(case.name), case.asked or case.model)
    opened = metering.begin(call)
    assert opened is not None
    opened.leave()
    opened.settle(reading)
    (span,) = exporter.get_finished_spans()
    return span


def told(span: Any) -> dict[str, Any]:
    """What is kept of a span: money and ids as what they are, not how much."""
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in (span.attributes or {}).items()}
    for key, value in list(values.items()):
        if key == names.COMPAT_COST or (key.startswith(names.COST_PREFIX) and isinstance(value, float)):
            values[key] = "amount"
    for key in (names.RECORD_ID, names.PRICE_ID, names.PRICE_VERSION):
        if key in values:
            values[key] = "text"
    return {"name": span.name, "kind": span.kind.name, "attributes": dict(sorted(values.items()))}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_span_of_an_answer_is_as_it_was(case: Any, body: Callable[[str], Any]) -> None:
    """Name, kind, every attribute and its type; the parts of the cost add up to the total, and that is what the answer costs."""
    span = span_of(case, body(case.name))
    assert told(span) == json.loads(GOLDEN.read_text(encoding="utf-8"))[case.name]
    attributes = span.attributes
    assert (names.COST_TOTAL in attributes) == (case.cost is not None)
    if case.cost is not None:
        # Amounts are rounded up to a nano-dollar.
        assert 0 <= Decimal(repr(attributes[names.COST_TOTAL])) - Decimal(case.cost) < Decimal("1.01e-9")
        parts = [
            value for key, value in attributes.items() if key.startswith(names.COST_PREFIX) and isinstance(value, float)
        ]
        more = sum(attributes.get(key, 0.0) for key in (names.COST_TOTAL, names.COST_REASONING, names.COST_LIST))
        if len(parts) > 1:
            assert sum(parts) - more == pytest.approx(attributes[names.COST_TOTAL])


def test_every_kept_span_has_a_body() -> None:
    """Nothing is kept of what is gone."""
    assert set(json.loads(GOLDEN.read_text(encoding="utf-8"))) == {case.name for case in CASES}


def main() -> None:
    found = {}
    for case in CASES:
        body = json.loads((HERE / "bodies" / f"{case.name}.json").read_text(encoding="utf-8"))
        found[case.name] = told(span_of(case, body))
    GOLDEN.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
