"""Price lists: the bundled one, and those of the user.

The bundled list is one JSON text a line (a header, then each provider followed by its models), so that only the providers that
are asked for are parsed: opening it costs a few milliseconds, a provider less than one.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import TYPE_CHECKING, Any

from aifinops.errors import ConfigurationError
from aifinops.pricing.match import Names, loosely, nearest, provider_id, without_prefix
from aifinops.pricing.prices import Entry, read_entry

if TYPE_CHECKING:
    from pathlib import Path

    from aifinops.pricing.contract import Contract

__all__ = ["BUNDLED", "PriceList", "bundled_lists", "from_file", "from_table", "load_bundled", "read_list"]

_DATA = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data")

BUNDLED = os.path.join(_DATA, "llm.jsonl")
"""The list of models. Written by `tools/compile_prices.py`."""

NOWHERE = {"regex": "(?!)"}
"""The `home` of services whose names say nothing without their provider: `standard`, `serverless`."""

_SCHEMA = 1
Rows = Sequence[Mapping[str, Any]]


@dataclass(slots=True, eq=False, repr=False)
class _Provider:
    """One provider of a list; its models are read when first asked for."""

    row: Mapping[str, Any]
    load: Callable[[], Rows]
    _index: tuple[Rows, Names] | None = None

    def index(self) -> tuple[Rows, Names]:
        if self._index is None:
            rows = self.load()
            self._index = (rows, Names.of(rows))
        return self._index

    def find(self, model: str) -> Mapping[str, Any] | None:
        rows, names = self.index()
        number = names.find(model)
        return None if number is None else rows[number]


@dataclass(frozen=True, slots=True, eq=False)
class PriceList:
    """One price list.

    Attributes:
        id: short name, the first part of every `price_id`.
        version: of the list, as its maintainers count.
        date: when its maintainers last published or checked it.
        source: where it is from, for people.
        currency: ISO 4217, of every price in it.
        count: number of models.
        contract: terms over the prices of the lists after it; None without any.
    """

    id: str
    version: str
    date: date | None
    source: str
    currency: str
    count: int
    _providers: Mapping[str, _Provider] = field(repr=False)
    contract: Contract | None = None

    @property
    def providers(self) -> tuple[str, ...]:
        """The provider ids of this list."""
        return tuple(self._providers)

    def find(self, provider: str | None, model: str) -> Entry | None:
        """The entry of a model, by exact or declared match.

        Args:
            provider: any spelling that `match.provider_id` knows, or None for the one provider that the name belongs to.
            model: as the provider names it; case does not matter.
        """
        wanted = provider_id(provider)
        prefixed = without_prefix(wanted, model)
        if prefixed is None:
            return self._find(wanted, model)
        # Without a provider the prefix is the only one who says it; with one, a name with a slash may be the provider's own.
        if wanted is None:
            return self._find(*prefixed) or self._find(None, model)
        return self._find(wanted, model) or self._find(*prefixed)

    def _find(self, wanted: str | None, model: str) -> Entry | None:
        if wanted is None:
            found = [entry for home in self._homes(model) if (entry := self._in(home, model)) is not None]
            return found[0] if len(found) == 1 else (self._only(model) if not found else None)
        return self._in(wanted, model) or self._fallback(wanted, model)

    def _only(self, model: str) -> Entry | None:
        """The entry of a name that exactly one provider has, to the letter: `dall-e-3` looks like nobody's but is sold by one."""
        name = model.lower()
        named = {key: one for key, one in self._providers.items() if one.row.get("home") != NOWHERE}
        owners = [key for key, one in named.items() if name in one.index()[1].exact]
        return self._in(owners[0], model) if len(owners) == 1 else None

    def _homes(self, model: str) -> list[str]:
        """Providers whose own models have names like this; in a list that declares none of that, all of them."""
        declared = {key: one.row["home"] for key, one in self._providers.items() if "home" in one.row}
        if not declared:
            return list(self._providers)
        return [key for key, clause in declared.items() if loosely(clause, model.lower())]

    def _in(self, provider: str, model: str) -> Entry | None:
        one = self._providers.get(provider)
        row = one.find(model) if one else None
        return None if row is None else self._entry(provider, row)

    def _fallback(self, provider: str, model: str) -> Entry | None:
        """A provider that resells others' models at their standard price, where the list says so."""
        one = self._providers.get(provider)
        for other in one.row.get("fallback", ()) if one else ():
            entry = self._in(other, model)
            if entry is not None:
                note = f"{provider} has no price of its own here: the standard price of {other}, as the list says"
                return replace(
                    entry,
                    variants=tuple(v for v in entry.variants if v.when),
                    adjust=(),
                    notes=(*entry.notes, note),
                )
        return None

    def _entry(self, provider: str, row: Mapping[str, Any]) -> Entry:
        return read_entry(
            row,
            provider=provider,
            list_id=self.id,
            source=self.source,
            as_of=self.date,
            currency=self.currency,
        )

    def entries(self, provider: str | None = None) -> Iterator[Entry]:
        """Every entry of a provider, or of all."""
        for key in self._providers if provider is None else (provider_id(provider) or "",):
            one = self._providers.get(key)
            for row in one.index()[0] if one else ():
                yield self._entry(key, row)

    def nearest(self, provider: str | None, model: str) -> tuple[str, ...]:
        """Up to three model ids that look like `model`, among the providers that could have been meant."""
        wanted = provider_id(provider)
        keys = [wanted] if wanted in self._providers else (self._homes(model) or list(self._providers))
        return nearest(model, (row["model"] for key in keys if key for row in self._providers[key].index()[0]))


@functools.cache
def load_bundled() -> PriceList:
    """The list that comes with this version of the package; read once."""
    return read_list(BUNDLED)


@functools.cache
def bundled_lists() -> tuple[PriceList, ...]:
    """Every list that comes with this version of the package: models, then GPUs and instances, storage, vector databases."""
    return (load_bundled(), *(read_list(os.path.join(_DATA, f"{name}.jsonl")) for name in ("gpu", "storage", "vector")))


def read_list(path: str | Path) -> PriceList:
    """A list in the form that `tools/compile_prices.py` writes.

    Raises:
        ConfigurationError: when the file cannot be read or is of another schema.
    """
    try:
        with open(path, encoding="utf-8") as file:
            # Not splitlines(): JSON texts may hold characters that it takes for the end of a line (U+2028, U+0085).
            lines = file.read().rstrip().split("\n")
        header = json.loads(lines[0])
        schema = header.get("schema")
        if schema == _SCHEMA:
            return PriceList(
                id=header["id"],
                version=header["version"],
                date=date.fromisoformat(header["date"]),
                source=header["source"],
                currency=header["currency"],
                count=header["models"],
                _providers=dict(_providers(lines)),
            )
    except KeyError as error:
        raise ConfigurationError(f"price list {path} has no {error} in a line. Install the package again.") from error
    except (OSError, ValueError, IndexError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"price list {path} cannot be read: {error}. Install the package again.") from error
    raise ConfigurationError(f"price list {path} has schema {schema!r}; this version reads {_SCHEMA}")


def _providers(lines: Sequence[str]) -> Iterator[tuple[str, _Provider]]:
    at = 1
    while at < len(lines):
        row = json.loads(lines[at])
        first, at = at + 1, at + 1 + row["models"]
        # Models of one provider are parsed together, in one call of the C decoder, when they are first asked for.
        yield row["provider"], _Provider(row, functools.partial(_parse, lines[first:at]))


def _parse(lines: Sequence[str]) -> Rows:
    rows: Rows = json.loads(f"[{','.join(lines)}]")
    return rows


def from_file(path: str | Path) -> PriceList:
    """A user's price list (TOML, JSON or YAML; see `docs/reference/prices.md`), validated as a whole before anything is used.

    Raises:
        ConfigurationError: naming the file, the line or the key, the value and what to type instead.
    """
    from pathlib import Path

    from aifinops.pricing.schema import read_user_list

    return from_table(read_user_list(Path(path)))


def from_table(given: Mapping[str, Any]) -> PriceList:
    """A list from its validated content, as `schema` gives it."""
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for row in given["models"]:
        rows.setdefault(provider_id(row["provider"]) or "", []).append(row)
    providers = {key: _Provider({"provider": key}, functools.partial(list, found)) for key, found in rows.items()}
    terms = any(given.get(name) for name in ("contract", "discounts", "commitments", "provisioned", "exchange"))
    return PriceList(
        id=given["id"],
        version=given["version"],
        date=given["date"],
        source=given["source"],
        currency=given["currency"],
        count=len(given["models"]),
        _providers=providers,
        contract=_contract(given) if terms else None,
    )


def _contract(given: Mapping[str, Any]) -> Contract:
    from aifinops.pricing.contract import read_contract  # most processes have none

    return read_contract(given["id"], given)
