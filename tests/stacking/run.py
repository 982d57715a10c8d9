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
LANGCHAIN = ["langchain-openai==1.7.4", "langchain-anthropic==1.7.10"]
BEYOND = ["mistralai==3.7.0", "google-genai==3.6.1", "boto3==1.44.8"]

# peer -> (packages, libraries, spans that the peer makes of a plain call and of a stream, whether a context silences it)
PEERS: dict[str, tuple[list[str], tuple[str, ...], tuple[int, int], bool]] = {
    "none": ([OPENAI, ANTHROPIC, *BEYOND], ("openai", "mistral", "google", "bedrock"), (0, 0), True),
    "native": ([OPENAI, ANTHROPIC, *BEYOND], ("anthropic", "mistral"), (1, 1), False),
    "official": (
        [
            OPENAI,
            ANTHROPIC,
            "opentelemetry-instrumentation-genai-openai==1.3b0",
            "opentelemetry-instrumentation-genai-anthropic==1.3b0",
            *BEYOND,
            "opentelemetry-instrumentation-google-genai==1.3b0",
            "opentelemetry-instrumentation-botocore==0.66b2",
        ],
        ("openai", "anthropic", "google", "bedrock"),
        (1, 1),
        True,
    ),
    "traceloop": (
        [
            OPENAI,
            ANTHROPIC,
            "opentelemetry-instrumentation-openai==0.62.4",
            "opentelemetry-instrumentation-anthropic==0.62.4",
            *BEYOND,
            "opentelemetry-instrumentation-bedrock==0.62.4",
        ],
        ("openai", "anthropic", "bedrock"),
        (1, 1),
        True,
    ),
    "openinference": (
        [
            OPENAI,
            ANTHROPIC,
            "openinference-instrumentation-openai==0.1.66",
            "openinference-instrumentation-anthropic==3.1.0",
            *BEYOND,
            "openinference-instrumentation-mistralai==2.2.2",
            "openinference-instrumentation-google-genai==1.4.14",
            "openinference-instrumentation-bedrock==0.1.61",
        ],
        ("openai", "anthropic", "mistral", "google", "bedrock"),
        (1, 1),
        False,
    ),
    "openlit": (["openlit==1.45.0", "openai==2.54.0", "anthropic==0.125.0"], ("openai", "anthropic"), (1, 1), False),
    # Logfire makes a span of the request, and for a stream another record when it has ended.
    "logfire": ([OPENAI, ANTHROPIC, "logfire==5.4.0"], ("openai", "anthropic"), (1, 2), False),
    "langchain": (LANGCHAIN, ("openai", "anthropic"), (0, 0), True),
    "langchain+traceloop": (
        [*LANGCHAIN, "opentelemetry-instrumentation-langchain==0.62.4"],
        ("openai", "anthropic"),
        (1, 1),
        False,
    ),
    # Its callbacks leave nothing in the context, so that its span stands beside ours; it tells no metrics.
    "langchain+openinference": (
        [*LANGCHAIN, "openinference-instrumentation-langchain==0.1.80"],
        ("openai", "anthropic"),
        (1, 1),
        False,
    ),
}
ORDERS, MODES = ("ours-first", "peer-first"), ("auto", "emit", "enrich", "off", "pricer", "hook")
WITHOUT_US = {"pricer", "hook"}
"""Modes in which nothing is metered by us; there is no order then."""

BESIDE = {"langchain+openinference"}
OWN = "aifinops"


def expected(peer: str, library: str, mode: str, found: dict[str, Any]) -> tuple[int, int]:
    """(our spans, theirs) of one call."""
    _, _, (plain, streamed), silenced = PEERS[peer]
    silenced = silenced and library != "bedrock"  # theirs begin on botocore's own method, or on one client at a time
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


def problems(cell: dict[str, Any], found: dict[str, Any]) -> Iterator[str]:
    """What is not as promised."""
    peer, mode = cell["peer"], cell["mode"]
    ours, theirs = expected(peer, cell["library"], mode, found)
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
    if not found["right"] and mode not in WITHOUT_US:  # what others tell may be wrong: nothing but the answer says it
        yield "a row has other tokens than the answer"
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


def cells(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    envs, modes = options.envs, options.modes
    for peer in options.only:
        packages, libraries, *_ = PEERS[peer]
        try:
            python = (
                envs / peer / "bin" / "python" if options.as_is else environment(envs, peer, [str(ROOT), *packages])
            )
        except subprocess.CalledProcessError as error:
            yield {"peer": peer, "skipped": f"cannot be installed: {error}"}
            continue
        for library in (
            libraries if options.libraries is None else [one for one in libraries if one in options.libraries]
        ):
            for mode in modes:
                if mode == "hook" and peer != "official":
                    continue
                for order in options.orders if mode not in WITHOUT_US else ORDERS[1:]:
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


def _said(one: dict[str, Any]) -> str:
    place = f"{short(one['costs'])}{'' if one['open'] else ', at export'}" if one["costs"] else "none"
    return f"{short(one['spans'])} | {one['rows']} | {short(list(one['tokens']))} | {place}"


def table(found: Sequence[dict[str, Any]]) -> str:
    """The page's table: a row for peer, library and mode, and for each way in which calls or orders differ."""
    rows: dict[tuple[str, ...], dict[str, dict[str, list[str]]]] = {}
    for cell in found:
        of_cell = {one["shape"]: _said(one) for one in cell.get("found", ())}
        for shape, said in of_cell.items():
            other = _SAME.get(shape, shape)
            kinds = rows.setdefault((cell["peer"], cell["library"], cell["mode"]), {}).setdefault(said, {})
            kinds.setdefault(other if of_cell.get(other) == said else shape, []).append(cell["order"])
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
    parser.add_argument("--libraries", nargs="*", help="only these")
    parser.add_argument("--orders", nargs="*", choices=ORDERS, default=list(ORDERS))
    parser.add_argument("--modes", nargs="*", choices=MODES, default=list(MODES))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", type=Path)
    options = parser.parse_args()
    found, bad = [], 0
    for cell in cells(options):
        found.append(cell)
        name = " ".join(str(cell.get(key, "")) for key in ("peer", "library", "mode", "order"))
        wrong = [f"{one['shape']}: {text}" for one in cell.get("found", ()) for text in problems(cell, one)]
        wrong += cell.get("broken", [])
        wrong += [f"{count} failures in {place}" for place, count in cell.get("failures", {}).items()]
        print(f"{name}: {cell.get('skipped') or ('as promised' if not wrong else '')}", flush=True)
        for text in wrong:
            print(f"    {text}", flush=True)
        told = [one["shape"] for one in cell.get("found", ()) if cell["mode"] in WITHOUT_US and not one["right"]]
        if told:
            print(f"    their spans tell other tokens than the answer: {', '.join(told)}", flush=True)
        bad += bool(wrong)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1))
        if options.table:
            options.table.write_text(table(found))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
