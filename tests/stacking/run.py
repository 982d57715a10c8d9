"""Every other instrumentation with ours, in both orders and every mode: who makes the spans, who tells the metrics, what is charged.

    python tests/stacking/run.py [--envs DIR] [--only official traceloop] [--modes auto emit] [--json FILE] [--table FILE]

Each peer has an environment of its own, made on first use under `--envs`. The exit status is 1 when a promise is broken: one ledger row
for each call, the spans that the mode promises, no second `gen_ai.client.token.usage`, one cost that is the ledger's.
"""

# ruff: noqa: T201 - a script: printing is its job

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from environments import environment  # noqa: E402

OPENAI, ANTHROPIC = "openai==3.57.0", "anthropic==2.13.0"

# peer -> (packages, libraries, spans that the peer makes of a plain call and of a stream, whether a context silences it)
PEERS: dict[str, tuple[list[str], tuple[str, ...], tuple[int, int], bool]] = {
    "none": ([OPENAI, ANTHROPIC], ("openai",), (0, 0), True),
    "native": ([OPENAI, ANTHROPIC], ("anthropic",), (1, 1), False),
    "official": (
        [
            OPENAI,
            ANTHROPIC,
            "opentelemetry-instrumentation-genai-openai==1.3b0",
            "opentelemetry-instrumentation-genai-anthropic==1.3b0",
        ],
        ("openai", "anthropic"),
        (1, 1),
        True,
    ),
    "traceloop": (
        [
            OPENAI,
            ANTHROPIC,
            "opentelemetry-instrumentation-openai==0.62.4",
            "opentelemetry-instrumentation-anthropic==0.62.4",
        ],
        ("openai", "anthropic"),
        (1, 1),
        True,
    ),
    "openinference": (
        [
            OPENAI,
            ANTHROPIC,
            "openinference-instrumentation-openai==0.1.66",
            "openinference-instrumentation-anthropic==3.1.0",
        ],
        ("openai", "anthropic"),
        (1, 1),
        False,
    ),
    "openlit": (["openlit==1.45.0", "openai==2.54.0", "anthropic==0.125.0"], ("openai", "anthropic"), (1, 1), False),
    # Logfire makes a span of the request, and for a stream another record when it has ended.
    "logfire": ([OPENAI, ANTHROPIC, "logfire==5.4.0"], ("openai", "anthropic"), (1, 2), False),
    "langchain": (["langchain-openai==1.7.4"], ("openai",), (0, 0), True),
    "langchain+traceloop": (
        ["langchain-openai==1.7.4", "opentelemetry-instrumentation-langchain==0.62.4"],
        ("openai",),
        (1, 1),
        False,
    ),
    # Its callbacks leave nothing in the context, so that its span stands beside ours; it tells no metrics.
    "langchain+openinference": (
        ["langchain-openai==1.7.4", "openinference-instrumentation-langchain==0.1.80"],
        ("openai",),
        (1, 1),
        False,
    ),
}
ORDERS, MODES = ("ours-first", "peer-first"), ("auto", "emit", "enrich", "off", "pricer", "hook")
WITHOUT_US = {"pricer", "hook"}
"""Modes in which nothing is metered by us; there is no order then."""

BESIDE = {"langchain+openinference"}
OWN = "aifinops"


def expected(peer: str, mode: str, found: dict[str, Any]) -> tuple[int, int]:
    """(our spans, theirs) of one call."""
    _, _, (plain, streamed), silenced = PEERS[peer]
    theirs = streamed if "stream" in found["shape"] else plain
    if found["shape"] == "embeddings" and peer.startswith("langchain"):
        theirs = 0  # both instrument the chat models only
    if mode in {"off", "enrich"} | WITHOUT_US:
        return 0, theirs
    if peer in BESIDE or not theirs:
        return 1, theirs
    return (1, 0) if mode == "emit" and silenced else (0, theirs)


def charged(peer: str, mode: str, shape: str) -> int:
    """Rows of one call. What is priced from spans alone has none where the span tells no tokens, or where there is no span."""
    if mode not in WITHOUT_US:
        return 1
    if peer in {"none", "langchain"} or (peer.startswith("langchain") and shape == "embeddings"):
        return 0
    return (
        0 if shape == "stream without usage" and peer != "openlit" else 1
    )  # OpenLIT guesses, and says it like a count


def problems(peer: str, mode: str, found: dict[str, Any]) -> Iterator[str]:
    """What is not as promised."""
    ours, theirs = expected(peer, mode, found)
    made = sum(scope == OWN for scope in found["spans"])
    rows = charged(peer, mode, found["shape"])
    if found["rows"] != rows:
        yield f"{found['rows']} rows"
    if (made, len(found["spans"]) - made) != (ours, theirs):
        yield f"spans {found['spans']}, expected {ours} of ours and {theirs} of theirs"
    if len(found["tokens"]) > 1 or (not ours and OWN in found["tokens"]):
        yield f"token metrics of {', '.join(found['tokens'])}"
    if len(found["costs"]) > rows or (rows and not found["same"]):
        yield f"costs on {found['costs']}"
    if found["leak"]:
        yield "the prompt is in the ledger"


def run(python: Path, peer: str, library: str, order: str, mode: str) -> dict[str, Any]:
    done = subprocess.run(
        [python, HERE / "worker.py", peer, library, order, mode],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=HERE,
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return {"broken": done.stderr.strip().splitlines()[-3:]}
    return json.loads(lines[-1])  # type: ignore[no-any-return]


def cells(peers: Sequence[str], modes: Sequence[str], envs: Path, *, as_is: bool) -> Iterator[dict[str, Any]]:
    for peer in peers:
        packages, libraries, *_ = PEERS[peer]
        try:
            python = envs / peer / "bin" / "python" if as_is else environment(envs, peer, [str(ROOT), *packages])
        except subprocess.CalledProcessError as error:
            yield {"peer": peer, "skipped": f"cannot be installed: {error}"}
            continue
        for library in libraries:
            for mode in modes:
                if mode == "hook" and peer != "official":
                    continue
                for order in ORDERS if mode not in WITHOUT_US else ORDERS[1:]:
                    cell = {"peer": peer, "library": library, "mode": mode, "order": order}
                    yield {**cell, **run(python, peer, library, order, mode)}


def short(scopes: Sequence[str]) -> str:
    """Whose spans: `ours`, `theirs`, `2 of theirs`."""
    ours = sum(scope == OWN for scope in scopes)
    theirs = len(scopes) - ours
    said = [
        name if count == 1 else f"{count} of {name}" for name, count in (("ours", ours), ("theirs", theirs)) if count
    ]
    return " and ".join(said) or "none"


_SAME = {"async chat": "chat", "async stream": "stream"}


def table(found: Sequence[dict[str, Any]]) -> str:
    """The page's table: a row for peer, library and mode, and for each way in which calls or orders differ."""
    rows: dict[tuple[str, ...], dict[str, dict[str, list[str]]]] = {}
    for cell in found:
        for one in cell.get("found", ()):
            place = "none"
            if one["costs"]:
                place = f"{short(one['costs'])}{'' if one['open'] else ', at export'}"
            said = f"{short(one['spans'])} | {one['rows']} | {short(list(one['tokens']))} | {place}"
            kinds = rows.setdefault((cell["peer"], cell["library"], cell["mode"]), {}).setdefault(said, {})
            kinds.setdefault(_SAME.get(one["shape"], one["shape"]), []).append(cell["order"])
    lines = [
        "| with | library | mode | calls | spans | rows | token metrics | cost on the span |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (peer, library, mode), variants in rows.items():
        for said, kinds in variants.items():
            notes = {orders[0].replace("-", " ") for orders in kinds.values() if len(set(orders)) < len(ORDERS)}
            note = f" ({', '.join(sorted(notes))})" if notes and mode not in WITHOUT_US else ""
            calls = "all" if len(variants) == 1 else ", ".join(kinds)
            lines.append(f"| {peer} | {library} | `{mode}` | {calls}{note} | {said} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", type=Path, default=ROOT / ".stacking")
    parser.add_argument("--as-is", action="store_true", help="use the environments as they are")
    parser.add_argument("--only", nargs="*", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--modes", nargs="*", choices=MODES, default=list(MODES))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", type=Path)
    options = parser.parse_args()
    found, bad = [], 0
    for cell in cells(options.only, options.modes, options.envs, as_is=options.as_is):
        found.append(cell)
        name = " ".join(str(cell.get(key, "")) for key in ("peer", "library", "mode", "order"))
        wrong = [
            f"{one['shape']}: {text}"
            for one in cell.get("found", ())
            for text in problems(cell["peer"], cell["mode"], one)
        ]
        wrong += cell.get("broken", [])
        wrong += [f"{count} failures in {place}" for place, count in cell.get("failures", {}).items()]
        print(f"{name}: {cell.get('skipped') or ('as promised' if not wrong else '')}", flush=True)
        for text in wrong:
            print(f"    {text}", flush=True)
        bad += bool(wrong)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1))
        if options.table:
            options.table.write_text(table(found))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
