"""What calls of one kind turned out to use: quantiles of answers and prompts, learned as calls end. Never a bound, only an expectation.

    learned = Learned()
    learned.update(Kind("openai", "gpt-4o", "rerank"), input_bound=3_120, input_tokens=790, output_tokens=55)
    learned.output(Kind("openai", "gpt-4o", "rerank"))          # 55.1: the median answer, tokens
    learned.share(Kind("openai", "gpt-4o", "rerank"))           # 0.25: prompt tokens for each token of the prompt's bound

The bound of a prompt is its bytes and some for structure, so the share is about its tokens per byte, and nothing has to be measured
for it that a call has not measured already.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from aifinops.errors import ConfigurationError
from aifinops.forking import in_child
from aifinops.usage import Quantities, input_total, output_total

__all__ = ["Kind", "Learned", "Quantiles"]

ACCURACY = 0.02
"""Every quantile is within this part of a value that was seen at that rank."""

_GAMMA = (1 + ACCURACY) / (1 - ACCURACY)
_LOG_GAMMA = math.log(_GAMMA)
_LEAST, _MOST = 1e-6, 1e9
"""Values are taken as being in here; between them are 864 buckets, which is the most that one distribution can hold."""

_ENOUGH = 8
"""Calls that have to be seen before a kind says anything."""

BATCH = 256
"""Calls that wait to be taken in."""

_HALVED_AT = 4_096
"""Observations after which all counts are halved, so that what a call site used to do is forgotten in time."""


class Quantiles:
    """Quantiles of positive numbers in buckets of equal ratio: constant memory, whatever the number of observations.

    The estimate of a quantile is within `ACCURACY` (2 %) of the observation at that rank, for values of 1e-6 to 1e9 and as long as there
    were fewer than 4,096 observations; later, older ones weigh less. Zero is kept apart and exact. Not safe for threads: `Learned` is.
    The same kind of sketch is known as DDSketch (Masson, Rim, Lee, VLDB 2019).
    """

    __slots__ = ("_buckets", "_count", "_zeros")

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}
        self._zeros = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def update(self, value: float) -> None:
        """Take one observation. A negative one, infinity and NaN are no observations and are left out."""
        if not 0 <= value < math.inf:
            return
        if value < _LEAST:
            self._zeros += 1
        else:
            key = math.ceil(math.log(min(value, _MOST)) / _LOG_GAMMA)
            self._buckets[key] = self._buckets.get(key, 0) + 1
        self._count += 1
        if self._count >= _HALVED_AT:
            self._halve()

    def _halve(self) -> None:
        # Rounded up: a rare large value is not forgotten at once.
        self._zeros = (self._zeros + 1) // 2 if self._zeros else 0
        self._buckets = {key: (count + 1) // 2 for key, count in self._buckets.items()}
        self._count = self._zeros + sum(self._buckets.values())

    def estimate(self, q: float) -> float | None:
        """The value at rank `floor(q * (n - 1))` of the `n` observations; None when there were none.

        Raises:
            ConfigurationError: when `q` is not 0 to 1.
        """
        if not 0 <= q <= 1:
            raise ConfigurationError(f"{q!r} is no quantile; give a number from 0 to 1")
        if not self._count:
            return None
        left = math.floor(q * (self._count - 1)) - self._zeros
        if left < 0:
            return 0.0
        for key in sorted(self._buckets):
            left -= self._buckets[key]
            if left < 0:
                # The middle of the bucket, as near to its lower as to its upper end in ratio.
                return 2 * math.exp(key * _LOG_GAMMA) / (_GAMMA + 1)
        return None

    def state(self) -> dict[str, Any]:
        """What `restore` takes: numbers, text and lists only, so that it can be written as JSON."""
        return {"zeros": self._zeros, "buckets": sorted([key, count] for key, count in self._buckets.items())}

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Quantiles:
        """The distribution that `state` was taken of.

        Raises:
            ConfigurationError: for anything else.
        """
        made = cls()
        try:
            made._zeros = _natural(state["zeros"])
            made._buckets = {_key(key): _natural(count) for key, count in state["buckets"]}
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigurationError(f"this is no state of quantiles: {error!r}") from None
        made._count = made._zeros + sum(made._buckets.values())
        return made


def _natural(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(value)
    return value


def _key(value: Any) -> int:
    if type(value) is not int or abs(value) > 1_000:
        raise ValueError(value)
    return value


class Kind(NamedTuple):
    """Calls that are alike: same provider and model, made at the same place of the program (its `feature`, or any tag)."""

    provider: str
    model: str
    site: str = ""


_Observation = tuple[tuple[str, str, str], int, Quantities | tuple[int, int | None], bool]
_alive: weakref.WeakSet[Learned] = weakref.WeakSet()


def _after_fork() -> None:
    # Another thread may have held a lock at the moment of the fork; in the child nobody would ever give it back.
    for one in _alive:
        one._lock = threading.RLock()


in_child(_after_fork)


class Learned:
    """Distributions of the calls of each kind. Safe for threads; at most `kinds` of them, the longest unused goes first.

    Args:
        kinds: the most that are kept. One takes some kilobytes: 864 buckets at most for the answers and as many for the prompts.
    """

    VERSION = 1

    def __init__(self, kinds: int = 1_024) -> None:
        if kinds < 1:
            raise ConfigurationError(f"kinds={kinds} leaves no room; give 1 or more")
        self._most = kinds
        self._seen: dict[Kind, tuple[Quantiles, Quantiles]] = {}
        self._waiting: deque[_Observation] = deque()
        # Re-entrant: a signal handler of the application may make a call while this thread is in here.
        self._lock = threading.RLock()
        _alive.add(self)

    def __len__(self) -> int:
        self._digest()
        return len(self._seen)

    def update(self, kind: Kind, *, input_bound: int, input_tokens: int, output_tokens: int | None) -> None:
        """Take what one call used, as the provider reported it.

        Args:
            kind: of the call.
            input_bound: what `tokens.text_upper_bound` said of its request; 0 or `UNBOUNDED` teach nothing of prompts.
            input_tokens: all prompt tokens, cached ones too. output_tokens: all that was written, thoughts too; None is no answer.
        """
        self._keep((kind, input_bound, (input_tokens, output_tokens), True))

    def note(self, call: tuple[str, str, str], input_bound: int, counts: Quantities, *, answers: bool) -> None:
        """`update` with the disjoint counts of a call, which are added up later.

        Args:
            call: provider, model and site, as in `Kind`. input_bound: as in `update`. counts: must not be changed any more.
            answers: False for calls that have no output.
        """
        self._keep((call, input_bound, counts, answers))

    def _keep(self, observation: _Observation) -> None:
        # Taken in together, when somebody asks or by the hundred: this runs at the end of every call.
        self._waiting.append(observation)
        if len(self._waiting) >= BATCH:
            self._digest()

    def _digest(self) -> None:
        with self._lock:
            while self._waiting:
                try:
                    call, bound, counts, answers = self._waiting.popleft()
                except IndexError:  # a finalizer's call has digested the last one
                    return
                if isinstance(counts, tuple):
                    read, written = counts
                else:
                    read, written = input_total(counts), output_total(counts) if answers else None
                self._take(Kind(*call), bound, read, written)

    def _take(self, kind: Kind, input_bound: int, input_tokens: int, output_tokens: int | None) -> None:
        share = input_tokens / input_bound if 0 < input_bound < 1 << 40 and input_tokens > 0 else None
        pair = self._seen.pop(kind, None)
        if pair is None:
            if len(self._seen) >= self._most:
                # The dict keeps its order of use: the first was not used for longest.
                del self._seen[next(iter(self._seen))]
            pair = Quantiles(), Quantiles()
        self._seen[kind] = pair
        if output_tokens is not None:
            pair[0].update(output_tokens)
        if share is not None:
            pair[1].update(share)

    def output(self, kind: Kind, q: float = 0.5) -> float | None:
        """The tokens of an answer at quantile `q`; None before 8 calls of that kind."""
        return self._ask(kind, 0, q)

    def share(self, kind: Kind, q: float = 0.5) -> float | None:
        """The part of its bound that a prompt really has, at quantile `q`; None before 8 calls of that kind."""
        return self._ask(kind, 1, q)

    def _ask(self, kind: Kind, which: int, q: float) -> float | None:
        with self._lock:
            self._digest()
            pair = self._seen.get(kind)
            return None if pair is None or len(pair[which]) < _ENOUGH else pair[which].estimate(q)

    def state(self) -> dict[str, Any]:
        """All of it as numbers, text and lists, to be written as JSON: no prompt, no answer, no more than names and counts."""
        with self._lock:
            self._digest()
            kinds = [[*kind, answers.state(), prompts.state()] for kind, (answers, prompts) in self._seen.items()]
        return {"version": self.VERSION, "kinds": kinds}

    @classmethod
    def restore(cls, state: Mapping[str, Any], kinds: int = 1_024) -> Learned:
        """What `state` was taken of; the most recently used `kinds` of it.

        Raises:
            ConfigurationError: for anything else, and for a version that is not known.
        """
        made = cls(kinds)
        if not isinstance(state, Mapping) or state.get("version") != cls.VERSION:
            raise ConfigurationError("this is no state of learned usage of version 1; begin with an empty one")
        try:
            for provider, model, site, answers, prompts in state["kinds"][-kinds:]:
                kind = Kind(str(provider), str(model), str(site))
                made._seen[kind] = Quantiles.restore(answers), Quantiles.restore(prompts)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigurationError(f"this is no state of learned usage: {error!r}") from None
        return made
