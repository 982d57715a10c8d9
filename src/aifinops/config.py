"""Every setting is one row of one table: name, environment variable, default, how it is read, what it does.

Order of authority: argument of `init()`, then environment, then `aifinops.toml` (or `[tool.aifinops]` of `pyproject.toml`) in
the working directory or the nearest parent that has one, then the default. A name that is not in the table is an error that
says which one was probably meant; nothing is applied when anything is wrong.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from aifinops.errors import ConfigurationError
from aifinops.tags import EMPTY, Tags, make_tags, merge, parse_tags

if TYPE_CHECKING:
    from decimal import Decimal
    from pathlib import Path

__all__ = ["DIALECTS", "OTHER_VARIABLES", "SETTINGS", "Config", "Setting", "load", "read_dialects", "usd_per_hour"]

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off"}


def _flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in _TRUE | _FALSE:
        return text in _TRUE
    raise ValueError("write true or false")


def _stream_usage(value: object) -> str:
    if value in {"known", "always", "never"}:
        return str(value)
    try:
        return "known" if _flag(value) else "never"
    except ValueError:
        raise ValueError("write true, false or always") from None


def _text(value: object) -> str:
    if not isinstance(value, (str, os.PathLike)) or not str(value).strip():
        raise ValueError("write a text that is not empty")
    return str(value)


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
_LEAST_BYTES = 4 << 20


def _bytes(value: object) -> int:
    text = str(value).strip().upper()
    digits = text.rstrip("BGIKM ")
    unit = _UNITS.get(text[len(digits) :].strip())
    if isinstance(value, bool) or not digits.isdecimal() or unit is None or int(digits) * unit < _LEAST_BYTES:
        raise ValueError('write bytes, 4 MiB at least: 500000000, "500 MB" or "2 GiB"')
    return int(digits) * unit


def _names(value: object) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple, set, frozenset)) or not all(
        isinstance(part, (str, os.PathLike)) for part in parts
    ):
        raise ValueError("write a list of names, or one text with commas")
    return tuple(str(part).strip() for part in parts if str(part).strip())


def _choice(*allowed: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        if value in allowed:
            return str(value)
        raise ValueError(f"write one of {', '.join(allowed)}")

    return read


def _choices(*allowed: str) -> Callable[[object], tuple[str, ...]]:
    def read(value: object) -> tuple[str, ...]:
        found = _names(value)
        wrong = [name for name in found if name not in allowed]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is not one of {', '.join(allowed)}")
        return tuple(name for name in found if name != "none")

    return read


DIALECTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "compat": ("otel-cost",),
        "otel-cost": ("compat", "openlit", "langfuse"),
        "langfuse": ("otel-cost",),
        "openinference": (),
        "logfire": (),
        "mlflow": (),
        "sentry": (),
        "langsmith": (),
        "latitude": (),
        "braintrust": (),
        "openlit": ("otel-cost",),
        "agento11y": (),
        "strict": (),
    }
)
"""Dialect -> those that it does not go with, for the reason that `read_dialects` says. `strict` goes with none."""


def read_dialects(value: object, where: str = "dialects") -> tuple[str, ...]:
    """Names of dialects, `"langfuse,logfire"` or a list; `none` stands for none.

    Args:
        value: as given. where: for the message.

    Raises:
        ConfigurationError: for an unknown name, and for two that do not go together, saying what to type.
    """
    try:
        found = _choices(*DIALECTS, "none")(value)
    except ValueError as error:
        raise ConfigurationError(f"{where} = {value!r}: {error}") from None
    if "strict" in found and len(set(found)) > 1:
        others = ", ".join(name for name in found if name != "strict")
        raise ConfigurationError(
            f"{where}: strict takes away what {others} would add; write strict alone, or without it"
        )
    for name in found:
        clash = next((other for other in DIALECTS[name] if other in found), None)
        if clash is not None:
            raise ConfigurationError(
                f"{where}: {name} and {clash} do not go together: gen_ai.usage.cost and gen_ai.usage.cost.amount on one span"
                " are an object and a scalar of one name, which backends refuse or misread; leave one of them out"
            )
    return found


def _dialects(value: object) -> tuple[str, ...]:
    return read_dialects(value)


def _metric_tags(value: object) -> tuple[str, ...]:
    found = _names(value)
    many = [name for name in found if name in _UNBOUNDED]
    if many:
        raise ValueError(
            f"{many[0]} has as many values as there are customers or runs, which metrics cannot hold; it is on spans and in the ledger"
        )
    return tuple(name for name in found if name != "none")


_UNBOUNDED = frozenset({"run", "conversation", "user", "session", "request", "trace"})
"""Tags that are ids."""


def _tags(value: object) -> Tags:
    if isinstance(value, str):
        return parse_tags(value)
    if isinstance(value, Mapping):
        return make_tags(value)
    raise ValueError('write a table of tags, or "team=search,feature=rerank"')


def _model_map(value: object) -> Mapping[str, str]:
    if isinstance(value, str):
        value = dict(part.rpartition("=")[::2] for part in value.split(","))
    if isinstance(value, Mapping):
        pairs = {str(name).strip(): text.strip() if isinstance(text, str) else "" for name, text in value.items()}
        if all(name and text for name, text in pairs.items()):
            return MappingProxyType(pairs)
    raise ValueError(
        'write a table of your names and the models they are, { "my-deployment" = "gpt-4o" }, or "my-deployment=gpt-4o"'
    )


def usd_per_hour(value: object) -> Decimal:
    """An amount of USD: a number, or a text with or without a `$`.

    Raises:
        ValueError: saying what to write.
    """
    from aifinops.money import decimal, parse_money

    parsed = parse_money(value) if isinstance(value, str) else None
    try:
        amount, currency = parsed or (decimal(value, "price"), "USD")  # type: ignore[arg-type]  # it refuses what is no number
    except ConfigurationError:
        amount, currency = None, ""
    if amount is None or currency != "USD" or amount < 0:
        raise ValueError('write USD an hour, e.g. "2.49"')
    return amount


def _minutes(value: object) -> float:
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        try:
            minutes = float(value)
        except ValueError:
            minutes = -1.0
        if 0 <= minutes < float("inf"):
            return minutes
    raise ValueError("write minutes, e.g. 15, or 0 for never")


def _term(value: object) -> str:
    return _choice("on_demand", "spot", "reserved", "capacity_block", "owned")(value)


def _decimal_of(value: object) -> Decimal | None:
    from aifinops.money import decimal

    try:
        return decimal(value, "it")  # type: ignore[arg-type]  # it refuses what is no number
    except ConfigurationError:
        return None


def _grid(value: object) -> str | Decimal:
    grams = _decimal_of(value)
    if grams is None and isinstance(value, str) and value.strip().isalpha():
        name = value.strip()
        return "world" if name.lower() == "world" else name.upper()
    if grams is None or grams < 0:
        raise ValueError("write a country such as SWE, `world`, or grams of CO2 for one kWh, e.g. 120")
    return grams


def _pue(value: object) -> Decimal:
    found = _decimal_of(value)
    if found is None or found < 1:
        raise ValueError('write a number of 1 or more, e.g. "1.3"')
    return found


def _table_of(example: str) -> Callable[[object], Mapping[str, Any]]:
    def read(value: object) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            raise ValueError(f"write a table such as {example}")
        return MappingProxyType(dict(value))

    return read


def _budgets(value: object) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, Mapping) and "limit" in item for item in value):
        raise ValueError('write a list of tables that each have a limit, e.g. [[budgets]] limit = "$50", per = "day"')
    return tuple(value)


def _alerts(value: object) -> tuple[Any, ...]:
    parts = value.split(",") if isinstance(value, str) else [value] if callable(value) else value
    if isinstance(parts, (list, tuple)) and all(isinstance(part, str) or callable(part) for part in parts):
        found = [part.strip() if isinstance(part, str) else part for part in parts]
        if all(callable(one) or one.startswith(("http://", "https://", "mailto:")) for one in found if one):
            return tuple(one for one in found if one)
    # Without the value: the address of a webhook is a secret.
    raise ConfigurationError('write a list such as ["https://hooks.example.com/...", "mailto:team@example.com"]')


@dataclass(frozen=True, slots=True, eq=False)
class Setting:
    """One row.

    Attributes:
        name: argument of `init()` and key in the file. env: environment variable, empty for none.
        default: the value when nobody said anything. read: text or object -> value, ValueError when it is wrong.
        doc: one sentence for the reference page.
    """

    name: str
    env: str
    default: Any
    read: Callable[[object], Any]
    doc: str


SETTINGS = (
    Setting("enabled", "AIFINOPS_ENABLED", True, _flag, "False turns metering off; budgets in force refuse nothing then."),
    Setting("ledger", "AIFINOPS_LEDGER", None, _text, "Path or URL of the ledger: `memory`, a file, `sqlite:///file`, `postgresql://`, `clickhouse://`, `chdb:///directory`, `otlp://collector:4318`."),
    Setting("copy_to", "AIFINOPS_COPY_TO", None, _text, "URL of a ledger elsewhere that is given a copy of every charge: `otlp://collector:4318`, or `otlp` for the endpoint of the standard variables."),
    Setting("spool", "AIFINOPS_SPOOL", None, _text, "Folder of charges on their way to a ledger elsewhere; default: `spool` in the user's data directory."),
    Setting("spool_bytes", "AIFINOPS_SPOOL_BYTES", None, _bytes, "The most that they may take there, such as `2 GiB`; what does not fit is dropped and counted. Default: 1 GiB."),
    Setting("store", "AIFINOPS_STORE", None, _text, "Where balances of named budgets live: `memory`, a file, `sqlite:///file`, or the URL of a Valkey, Redis or PostgreSQL server; default: `budgets.db` beside the ledger."),
    Setting("approval_key", "AIFINOPS_APPROVAL_KEY", None, _text, "File of the key that signs approvals, made with mode 0600 when there is none; default: `approvals.key` beside the ledger."),
    Setting("prices", "AIFINOPS_PRICES", (), _names, "Price lists and contracts of your own (TOML, JSON or YAML), asked before the bundled one."),
    Setting("price_folder", "AIFINOPS_PRICE_FOLDER", None, _text, "Where `aifinops prices update` keeps a refreshed list; default: the user's data directory."),
    Setting("model_map", "AIFINOPS_MODEL_MAP", EMPTY, _model_map, "Which models your own names are: Azure deployments, inference profiles of Bedrock."),
    Setting("tags", "AIFINOPS_TAGS", EMPTY, _tags, "Tags of everything in this process."),
    Setting("budgets", "", (), _budgets, "Standing budgets with `match`, enforced without a `with` block."),
    Setting("alerts", "AIFINOPS_ALERTS", (), _alerts, "Who is told about budgets: addresses of webhooks, `mailto:` addresses; in `init()` also callables."),
    Setting("smtp", "AIFINOPS_SMTP", None, _text, "The server that sends mail: `smtp://user:password@host:587?from=address`, or `smtps://`."),
    Setting("spans", "AIFINOPS_SPANS", "auto", _choice("auto", "emit", "enrich", "off"), "Who makes the span of a call: we, or another instrumentation (`enrich`); `auto` looks, `off` keeps ledger and metrics."),
    Setting("dialects", "AIFINOPS_DIALECTS", ("compat",), _dialects, "Attribute and metric names of backends, beside ours: `compat`, `langfuse`, `openinference` ...; `none` for none. See [Telemetry](telemetry.md#dialects)."),
    Setting("semconv", "AIFINOPS_SEMCONV", "compat", _choice("compat", "latest"), "Which conventions: `compat` is 1.41.1, `latest` those of semantic-conventions-genai; `OTEL_SEMCONV_STABILITY_OPT_IN=gen_ai_latest_experimental` says `latest`, too."),
    Setting("resource_tags", "AIFINOPS_RESOURCE_TAGS", (), _names, "Attributes of the OpenTelemetry resource that become tags: `service.name`, `deployment.environment.name` (the tag `environment`), `k8s.namespace.name` ..."),
    Setting("baggage", "AIFINOPS_BAGGAGE", False, _flag, "Whether tags are taken from OpenTelemetry baggage that callers of this program sent."),
    Setting("metric_tags", "AIFINOPS_METRIC_TAGS", ("team", "project", "feature"), _metric_tags, "Tags that become metric attributes; keep them few, and no ids. `none` for none."),
    Setting("otlp", "", None, _text, "OTLP endpoint; without it the standard `OTEL_EXPORTER_OTLP_*` variables decide."),
    Setting("threads", "AIFINOPS_THREADS", True, _flag, "Carry tags and budgets into `ThreadPoolExecutor` threads once `instrument()` was called."),
    Setting("egress", "AIFINOPS_EGRESS", False, _flag, "Whether bytes that storage sends are egress to the internet; false: this program is in the same region."),
    Setting("instrument", "AIFINOPS_INSTRUMENT", (), _names, "What `aifinops run` and `opentelemetry-instrument` meter; default: all that `instrument()` does."),
    Setting("summary", "AIFINOPS_SUMMARY", True, _flag, "Whether a program below `aifinops run` says at its end what it cost."),
    Setting("stream_usage", "AIFINOPS_STREAM_USAGE", "known", _stream_usage, "Ask for the usage of streams whose caller did not, and hide the answer to that from him: at hosts `known` to take the question (or true), `always`, or `never` (or false)."),
    Setting("gpu_usd_per_hour", "AIFINOPS_GPU_USD_PER_HOUR", None, usd_per_hour, "What an hour of one GPU costs, in USD, whatever the price lists say."),
    Setting("gpu_term", "AIFINOPS_GPU_TERM", None, _term, "On what terms machines are held: `on_demand`, `spot`, `reserved`, `capacity_block` or `owned`; default: what the machine says."),
    Setting("gpu_idle_minutes", "AIFINOPS_GPU_IDLE_MINUTES", 15.0, _minutes, "After how many minutes a run says that devices which it holds do nothing; 0 for never."),
    Setting("gpu_metadata", "AIFINOPS_GPU_METADATA", False, _flag, "Whether the metadata service of the cloud is asked for the instance type, region and terms, for 0.2 s at most."),
    Setting("gpu_owned", "", None, _table_of('gpu_owned = { capex = "320000", gpus = 8, years = 3 }'), "Hardware of your own, written off: `capex`, `gpus`, `years`, `residual`, `upkeep_per_year`, `kw`, `pue`, `usd_per_kwh`."),
    Setting("cpu_owned", "", None, _table_of('cpu_owned = { capex = "9000", cpus = 128, years = 4 }'), "Machines of your own without accelerators, written off: as `gpu_owned`, with `cpus` in place of `gpus`."),
    Setting("gpu_grid", "AIFINOPS_GPU_GRID", None, _grid, "Whose electricity it is, for the CO2 of runs: ISO 3166 country such as `SWE`, `world`, or grams for one kWh; default: the country of the cloud's region."),
    Setting("gpu_pue", "AIFINOPS_GPU_PUE", None, _pue, "Power usage effectiveness of the room, 1 or more; default: that of `gpu_owned`, or what the provider has published."),
    Setting("gpu_quotas", "AIFINOPS_GPU_QUOTAS", None, _text, "File of the quotas of teams (TOML); see [GPU quotas](../how-to/gpu-quotas.md)."),
)  # fmt: skip

_BY_NAME = {row.name: row for row in SETTINGS}
_BY_ENV = {row.env: row for row in SETTINGS if row.env}
OTHER_VARIABLES = (
    "AIFINOPS_AUTO",
    "AIFINOPS_CONFIG",
    "AIFINOPS_CORPUS",
    "AIFINOPS_EXAMPLES",
    "AIFINOPS_FAULTS",
    "AIFINOPS_RUN",
    "AIFINOPS_RUN_ID",
    "AIFINOPS_RUN_PID",
    "AIFINOPS_SOAK",
    "AIFINOPS_TESTING",
)
"""Variables that are no settings: switches of `aifinops run` and of tests, and where a file or test material is."""

_FILES = ("aifinops.toml", "pyproject.toml")
_OPT_IN = "OTEL_SEMCONV_STABILITY_OPT_IN"


@dataclass(frozen=True, slots=True, eq=False)
class Config:
    """The settings in force; see `SETTINGS` for what each does. `origin` says where each non-default came from."""

    enabled: bool = True
    ledger: str | None = None
    copy_to: str | None = None
    spool: str | None = None
    spool_bytes: int | None = None
    store: str | None = None
    approval_key: str | None = None
    prices: tuple[str, ...] = ()
    price_folder: str | None = None
    model_map: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    tags: Tags = field(default_factory=lambda: EMPTY)
    budgets: tuple[Mapping[str, Any], ...] = ()
    alerts: tuple[Any, ...] = ()
    smtp: str | None = None
    spans: str = "auto"
    dialects: tuple[str, ...] = ("compat",)
    semconv: str = "compat"
    resource_tags: tuple[str, ...] = ()
    baggage: bool = False
    metric_tags: tuple[str, ...] = ("team", "project", "feature")
    otlp: str | None = None
    threads: bool = True
    egress: bool = False
    instrument: tuple[str, ...] = ()
    summary: bool = True
    stream_usage: str = "known"
    gpu_usd_per_hour: Decimal | None = None
    gpu_term: str | None = None
    gpu_idle_minutes: float = 15.0
    gpu_metadata: bool = False
    gpu_owned: Mapping[str, Any] | None = None
    cpu_owned: Mapping[str, Any] | None = None
    gpu_grid: str | Decimal | None = None
    gpu_pue: Decimal | None = None
    gpu_quotas: str | None = None
    origin: Mapping[str, str] = field(default_factory=lambda: EMPTY)


def load(
    arguments: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] = os.environ,
    directory: Path | None = None,
) -> Config:
    """Read every source and merge them.

    Args:
        arguments: what `init()` was given; None values count as not given.
        environ: the environment. directory: where to look for a file (default: the working directory, then upwards).

    Raises:
        ConfigurationError: for the first wrong name or value; it names the value, the place and what to type.
    """
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for place, found in (_from_file(environ, directory), _from_environ(environ), _from_arguments(arguments or {})):
        for name, (value, where) in found.items():
            values[name] = _read(_BY_NAME[name], value, where)
            origin[name] = place
    if "semconv" not in values and "gen_ai_latest_experimental" in environ.get(_OPT_IN, "").replace(" ", "").split(","):
        values["semconv"], origin["semconv"] = "latest", _OPT_IN
    if "agento11y" in values.get("dialects", ()) and values.get("semconv") == "latest":
        raise ConfigurationError(
            "dialects: agento11y adds to gen_ai.client.token.usage, which semconv=latest does not have; leave one of them out"
        )
    run = environ.get("AIFINOPS_RUN")
    if run:
        values["tags"] = merge(make_tags({"run": run}), values.get("tags", EMPTY))
    return Config(**values, origin=origin)


_Found = dict[str, tuple[Any, str]]


def _read(row: Setting, value: object, where: str) -> Any:
    try:
        return row.read(value)
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from None
    except ValueError as error:
        raise ConfigurationError(f"{where} = {value!r}: {error}") from None


def _from_arguments(arguments: Mapping[str, Any]) -> tuple[str, _Found]:
    for name in arguments:
        if name not in _BY_NAME:
            raise ConfigurationError(f"init() has no setting {name!r}.{_nearest(name, list(_BY_NAME))}")
    return "init()", {name: (value, f"init({name}=...)") for name, value in arguments.items() if value is not None}


def _from_environ(environ: Mapping[str, str]) -> tuple[str, _Found]:
    found: _Found = {}
    for key in sorted(environ):
        if not key.startswith("AIFINOPS_") or key in OTHER_VARIABLES:
            continue
        row = _BY_ENV.get(key)
        if row is None:
            raise ConfigurationError(f"environment variable {key} is unknown.{_nearest(key, list(_BY_ENV))}")
        if environ[key] != "":
            found[row.name] = (environ[key], f"environment variable {key}")
    return "environment", found


def _from_file(environ: Mapping[str, str], directory: Path | None) -> tuple[str, _Found]:
    path = _find_file(environ, directory)
    if path is None:
        return "", {}
    table = _table(path)
    for name in table:
        if name not in _BY_NAME:
            raise ConfigurationError(f"{path}: no setting {name!r}.{_nearest(name, list(_BY_NAME))}")
    return path, {name: (value, f"{path}: {name}") for name, value in table.items()}


def _find_file(environ: Mapping[str, str], directory: Path | None) -> str | None:
    named = environ.get("AIFINOPS_CONFIG")
    if named:
        if not os.path.isfile(named):
            raise ConfigurationError(
                f"AIFINOPS_CONFIG={named!r} is no file; unset it or name an existing aifinops.toml"
            )
        return named
    folder = os.getcwd() if directory is None else os.path.abspath(directory)
    while True:
        for name in _FILES:
            path = os.path.join(folder, name)
            if os.path.isfile(path) and (name == "aifinops.toml" or _mentions_us(path)):
                return path
        above = os.path.dirname(folder)
        if above == folder or os.path.exists(os.path.join(folder, ".git")):
            return None
        folder = above


def _mentions_us(path: str) -> bool:
    # Cheap, and a broken pyproject.toml that never mentions us is not ours to complain about.
    try:
        with open(path, "rb") as file:
            return b"[tool.aifinops" in file.read()
    except OSError:
        return False


def _table(path: str) -> Mapping[str, Any]:
    import tomllib  # most programs have no such file

    try:
        with open(path, "rb") as file:
            content = tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is no valid TOML: {error}") from None
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
    table = content.get("tool", {}).get("aifinops", {}) if os.path.basename(path) == "pyproject.toml" else content
    if not isinstance(table, Mapping):
        raise ConfigurationError(f"{path}: tool.aifinops must be a table")
    return table


def _nearest(name: str, known: list[str]) -> str:
    import difflib  # only to say what was wrong

    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {near[0]}?" if near else f" Known: {', '.join(known)}."
