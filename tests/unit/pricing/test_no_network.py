"""Nothing about prices touches the network: asked of the interpreter itself, in a process of its own.

An audit hook sees every socket below all libraries, also those of C extensions that go through the socket module, and every process that is
started. What it sees is refused and remembered, so that an attempt that somebody catches is found too.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

GUARD = """
import json, sys

tried = []

def watch(event, arguments):
    if event.startswith(("socket.", "urllib.", "http.client.", "ftplib.", "smtplib.", "subprocess.", "os.system", "os.exec", "os.posix_spawn")):
        tried.append(event)
        raise PermissionError(event)

sys.addaudithook(watch)
said = []
"""

END = """
print(json.dumps({"tried": tried, "said": said, "modules": sorted(sys.modules)}))
"""

CHAT = {
    "object": "chat.completion",
    "model": "gpt-4o-2024-08-06",
    "usage": {"prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1200},
}

STEPS = {
    "price": """
import aifinops as af
said.append(str(af.price("gpt-4o", input_tokens=1000, output_tokens=200).amount))
said.append(af.price("gpt-4o", provider="openai", tier="priority", input_tokens=1000).explain())
said.append(af.price("no-such-model-at-all", input_tokens=1).basis)
said.append(af.price("gpt-4o", provider="no-such-provider", input_tokens=1).basis)
""",
    "response": f"""
import aifinops as af
said.append(str(af.price_response({CHAT!r}, provider="openai").amount))
""",
    "estimate": """
import aifinops as af
picture = {"type": "image_url", "image_url": {"url": "https://example.com/picture.png"}}
for content in ("hello " * 50, [{"type": "text", "text": "what is this?"}, picture]):
    cost = af.estimate("gpt-4o", messages=[{"role": "user", "content": content}], max_tokens=100)
    assert cost.upper > 0
    said.append(cost.basis)
said.append(af.estimate("gpt-4o", messages=[{"role": "user", "content": "hi"}], previous_response_id="resp_1").basis)
""",
    "record and report": """
import aifinops as af
with af.budget("$1", per="day", name="search"), af.track("ingest", team="search"):
    af.record(usage={"input_tokens": 1000}, model="gpt-4o", provider="openai")
af.flush()
said.append(str(af.report(by=["team", "model"], since="7d").total.cost.amount))
af.shutdown()
""",
    "a list of the user": """
import os
from pathlib import Path
import aifinops as af
path = Path(os.environ["HOUSE_LIST"])
path.write_text('id = "mine"\\n[[models]]\\nprovider = "local"\\nmodel = "llama-house"\\nrates = {input_tokens = 2, output_tokens = 3}\\n')
af.init(prices=[path])
said.append(str(af.price("llama-house", provider="local", input_tokens=1_000_000).amount))
""",
    "tokens": """
import sys
sys.modules["toktok"] = None  # the extra that needs no file
from aifinops.pricing.encodings import encoding_path
from aifinops.pricing.tokens import count_tokens, text_upper_bound
said.append(str(count_tokens("hello", "gpt-4o")))
said.append(str(count_tokens("hello", "no-such-model")))
said.append(str(encoding_path("o200k_base") is not None))
said.append(str(text_upper_bound({"messages": [{"role": "user", "content": "hello"}]}) > 0))
""",
    "tokens with the extra": """
from aifinops.pricing.tokens import count_tokens
said.append(str(count_tokens("hello", "gpt-4o")))
""",
    "every model": """
from aifinops.pricing.book import PriceBook
from aifinops.pricing.prices import Sheet
from aifinops.usage import Sku, Usage
book, known = PriceBook(), 0
for entry in book.lists[0].entries():
    known += isinstance(entry.sheet(1_790_000_000_000_000_000), Sheet)
    book.price(Usage({"input_tokens": 1_000, "output_tokens": 1_000}, Sku(entry.provider, entry.model), 1_790_000_000_000_000_000))
said.append(str(known > 2_000))
""",
    "the command line": """
from typer.testing import CliRunner
from aifinops.cli.app import app
for words in (["price", "gpt-4o", "--input", "1000"], ["price", "no-such-model", "--input", "1"], ["version"]):
    done = CliRunner().invoke(app, words)
    said.append(str(done.exit_code))
""",
}  # fmt: skip

SAID = {
    "price": ["0.004500", "unknown", "unknown"],
    "response": ["0.004500"],
    "estimate": ["estimated", "estimated", "estimated"],
    "record and report": ["0.002500000"],
    "a list of the user": ["2"],
    "tokens": ["None", "None", "True", "True"],
    "tokens with the extra": ["1" if importlib.util.find_spec("toktok") else "None"],
    "every model": ["True"],
    "the command line": ["0", "1", "0"],
}


def run(code: str, folder: Path) -> dict[str, Any]:
    settings = {
        "AIFINOPS_LEDGER": str(folder / "ledger.db"),
        "TIKTOKEN_CACHE_DIR": str(folder / "no-encodings"),
        "HOUSE_LIST": str(folder / "house.toml"),
        "HOME": str(folder),
    }
    done = subprocess.run(
        [sys.executable, "-c", GUARD + code + END], env={**os.environ, **settings}, cwd=folder, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("step", list(STEPS))
def test_prices_need_no_network(step: str, tmp_path: Path) -> None:
    """Nothing tries to open a socket, to resolve a name or to start a program, and the answers are those that are always given."""
    found = run(STEPS[step], tmp_path)
    assert found["tried"] == []
    short = [text for text in found["said"] if "\n" not in text]
    assert [_plain(text) for text in short] == [_plain(text) for text in SAID[step]]


def _plain(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text


@pytest.mark.parametrize(
    "attempt",
    [
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import socket; socket.getaddrinfo('example.invalid', 443)",
        "import urllib.request; urllib.request.urlopen('https://example.invalid/')",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.system('true')",
    ],
)
def test_the_guard_sees_what_it_is_for(attempt: str, tmp_path: Path) -> None:
    """An attempt is found, also when its error is swallowed: without this the tests above would prove nothing."""
    found = run(f"\ntry:\n    {attempt}\nexcept PermissionError:\n    pass\n", tmp_path)
    assert found["tried"]


@pytest.mark.parametrize("step", ["price", "response", "tokens", "every model"])
def test_pricing_loads_no_library_of_the_network(step: str, tmp_path: Path) -> None:
    """Neither the standard library's HTTP client nor anybody else's is imported to price a call."""
    found = set(run(STEPS[step], tmp_path)["modules"])
    assert found.isdisjoint(
        {"requests", "httpx", "aiohttp", "urllib3", "http.client", "urllib.request"} - _of_tiktoken(step)
    )


def _of_tiktoken(step: str) -> set[str]:
    # tiktoken itself may bring in what it would download with; the first test shows that it does not.
    return {"requests", "urllib3", "http.client", "urllib.request"} if step == "tokens" else set()
