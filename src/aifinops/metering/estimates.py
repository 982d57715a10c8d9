"""Answers without a usage: what came is counted, with bounds that hold what was billed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aifinops.metering import bounds
from aifinops.metering.call import BYTES_PER_TOKEN_MOST, NO_OUTPUT, UNSAID
from aifinops.pricing import tokens
from aifinops.usage import output_total

if TYPE_CHECKING:
    from aifinops.metering.call import Call
    from aifinops.pricing.book import PriceBook
    from aifinops.reading import Reading

__all__ = ["ALLOWANCE", "asked", "estimate", "partly"]

BYTES_PER_TOKEN = 4
"""Estimates without a tokenizer: about so many UTF-8 bytes a token, never less than one."""

CACHED_AT_LEAST = 128
"""A cached token of a prompt costs no less than one part in so many of a fresh one, at any provider whose prices are listed."""

ALLOWANCE = 64
"""Tokens that are added to what was counted of a stream that was left: the provider goes on until it notices, and bills that."""


def estimate(book: PriceBook, call: Call, output_text: str, chunks: int, reading: Reading, *, complete: bool) -> None:
    """Count what came. A stream that was left may have been written on: an allowance for what was under way is added.

    The bounds hold what was billed. A prompt that was read from a cache costs next to nothing; of an answer whose end was not seen,
    or whose model thinks unseen, anything up to its limit may have been written.
    """
    prompt, messages = _prompt(call.body)
    size = len(output_text.encode())
    most = size + UNSAID if complete and not call.unseen else max(size + UNSAID, bounds.allowance(book, call))
    cap = call.output_cap(output_text)
    if cap is not None:
        most, chunks = min(most, cap), min(chunks, cap)
    if call.start is not None and not complete:
        # Whoever ends a stream in time is billed what was under way, and no more.
        most = min(most, max(call.start, chunks))
    output_mid = min(max(_about(output_text, call.model), chunks) + (0 if complete else ALLOWANCE), most)
    told = reading.quantities  # the input, where the answer told it before it broke off
    reading.estimated = True
    least = told or {"input_tokens": len(prompt.encode()) // (BYTES_PER_TOKEN_MOST * CACHED_AT_LEAST)}
    upper = told or {"input_tokens": bounds.prompt_of(book, call)}
    middle = told or {"input_tokens": _about(prompt, call.model) + 4 * messages}
    if call.operation in NO_OUTPUT:
        reading.quantities, reading.lower, reading.upper = middle, least, upper
        return
    reading.quantities = {**middle, "output_tokens": output_mid}
    reading.lower = {**least, "output_tokens": chunks}
    reading.upper = {**upper, "output_tokens": most}


def asked(book: PriceBook, call: Call, output_text: str, chunks: int, reading: Reading, at: int) -> None:
    """Count an answer by what its request says is billed, such as the characters that are spoken."""
    if bounds.cost_of(book, call, call.counts, at).amount is not None:
        reading.quantities, reading.options = call.counts, call.options
        if call.most:
            reading.estimated, reading.lower, reading.upper = True, dict.fromkeys(call.counts, 0), call.most
    elif call.alone:
        reading.quantities, reading.options = call.counts, call.options
    elif "characters" in call.counts:
        _spoken(reading, int(call.counts["characters"]))  # this model is billed by tokens, which nobody tells
    elif "audio_seconds" in call.counts:
        _heard(reading, call, bounds.allowance(book, call))
    else:
        estimate(book, call, output_text, chunks, reading, complete=False)


def partly(book: PriceBook, call: Call, output_text: str, chunks: int, reading: Reading) -> None:
    """Count a stream that ended early and had told its usage so far: no less was billed, perhaps up to the output limit."""
    told = reading.quantities
    made, visible = int(output_total(told)), int(told.get("output_tokens", 0))
    counted = max(made, _about(output_text, call.model), chunks)
    most = max(counted, len(output_text.encode()), bounds.allowance(book, call))
    cap = call.output_cap(output_text)
    if cap is not None:  # what was told is more than a limit: it is billed
        counted, most = max(made, min(counted, cap)), max(made, min(most, cap))
    if call.start is not None:  # as in `estimate`
        most = max(counted, min(most, call.start))
    reading.estimated = True
    reading.lower = told
    reading.quantities = {**told, "output_tokens": visible + counted - made}
    reading.upper = {**told, "output_tokens": visible + most - made}


def _spoken(reading: Reading, characters: int) -> None:
    """Tokens of speech by the length of its text. OpenAI's models say 20 a second; people say about 15 letters in it, in scripts of
    whole syllables about 5, and never below a half or above 60."""
    reading.estimated = True
    reading.quantities = {"input_tokens": -(-characters // BYTES_PER_TOKEN), "output_tokens": -(-characters * 4 // 3)}
    reading.lower = {"input_tokens": characters // BYTES_PER_TOKEN_MOST, "output_tokens": characters // 3}
    reading.upper = {"input_tokens": 4 * characters, "output_tokens": 40 * characters}


def _heard(reading: Reading, call: Call, allowance: int) -> None:
    """Tokens of a recording by its length: OpenAI's models hear 10 a second; people say about 4 in it. The text of the prompt is beside."""
    expected, most = int(call.counts["audio_seconds"]), int(call.most.get("audio_seconds", 0))
    prompt, _ = _prompt(call.body)
    size = len(prompt.encode())
    reading.estimated = True
    reading.quantities = {
        "input_audio_tokens": 10 * expected,
        "input_tokens": -(-size // BYTES_PER_TOKEN),
        "output_tokens": 4 * expected,
    }
    reading.lower = dict.fromkeys(reading.quantities, 0)
    reading.upper = {
        "input_audio_tokens": 10 * most,
        "input_tokens": size,
        "output_tokens": max(allowance, 4 * expected),
    }


def _about(text: str, model: str) -> int:
    """Tokens of a text: exact where a tokenizer is on disk, else a quarter of its UTF-8 bytes."""
    exact = tokens.count_tokens(text, model) if text else 0
    return exact if exact is not None else -(-len(text.encode()) // BYTES_PER_TOKEN)


_PROMPTS = (
    "instructions", "messages", "input", "inputs", "prompt", "message", "system", "systemInstruction", "contents", "content", "requests",
    "instances", "inputText", "texts", "query", "documents",
)  # fmt: skip
"""Where requests have the text of a prompt: OpenAI's, Anthropic's, Google's, Amazon's, Cohere's and Hugging Face's words."""


def _prompt(body: Any) -> tuple[str, int]:
    """All text of a request's prompt, and how many messages it is in."""
    texts: list[str] = []
    messages = 0
    todo = [body.get(key) for key in _PROMPTS] if isinstance(body, Mapping) else []
    while todo:
        item = todo.pop()
        if isinstance(item, str):
            texts.append(item)
        elif isinstance(item, Mapping):
            messages += "role" in item
            todo += [item.get("content"), item.get("text"), item.get("parts")]
        elif isinstance(item, (list, tuple)):
            todo += item
    return " ".join(texts), messages
