"""What the names are: every attribute and every instrument with type, unit, condition, source and meaning.

`tools/telemetry_tables.py` writes the tables of docs/reference/telemetry.md from here, and the instruments are created from here. It is
apart from `names`, which every program loads that meters a call.
"""

from __future__ import annotations

from typing import NamedTuple

from aifinops.telemetry import names

__all__ = ["ATTRIBUTES", "METRICS", "Attribute", "Metric"]

OWN, SEMCONV, GENAI, HARDWARE = "ours", "semconv 1.41.1", "semconv-genai 1.42.0-dev", "semconv 1.44.0"


class Attribute(NamedTuple):
    """One attribute, or several that are told of together.

    Attributes:
        where: table of the reference page: `call`, `block`, `gpu`, `idle event`, `budget event`, `metric`.
        names: as emitted; one that ends in `*` stands for all that begin so. type: of the value.
        unit: UCUM, empty for none. when: what has to be so for it to be there. source: whose name it is. text: meaning.
    """

    where: str
    names: tuple[str, ...]
    type: str
    unit: str
    when: str
    source: str
    text: str


class Metric(NamedTuple):
    """One instrument.

    Attributes:
        name, kind, unit: as created. attributes: as the page says them. when: what has to be so for it to be emitted.
        source: whose name it is. text: its description. buckets: advice of bounds, for a histogram.
    """

    name: str
    kind: str
    unit: str
    attributes: str
    when: str
    source: str
    text: str
    buckets: tuple[float, ...] = ()


_TAG = "the tag is in force"
_COST = "the price is known"
_CO2 = "the energy was measured and the region is known"
_TELLS = "the answer says it"
_LATEST = 'semconv="latest"'
_OURS = "the span is ours"
_ALONE = "the span of the call is ours, or nobody makes one"

ATTRIBUTES = tuple(
    Attribute(*row)
    for row in (
        ("call", (names.OPERATION, names.PROVIDER), "string", "", "always", SEMCONV, "what was asked of whom"),
        ("call", (names.REQUEST_MODEL,), "string", "", "the request names one", SEMCONV, "the model that was asked for"),
        ("call", (names.RESPONSE_MODEL, names.RESPONSE_ID), "string", "", _TELLS, SEMCONV, "the model that answered; id of the answer"),
        ("call", (names.FINISH_REASONS,), "string[]", "", _TELLS, SEMCONV, "why it ended"),
        ("call", (names.REQUEST_STREAM,), "boolean", "", "a stream", SEMCONV, "`true`"),
        ("call", (names.REQUEST_MAX_TOKENS,), "int", "{token}", "a budget set it", SEMCONV, "the output limit that was sent"),
        ("call", (names.SERVER_ADDRESS,), "string", "", _OURS, SEMCONV, "host that was called"),
        ("call", (names.SERVER_PORT,), "int", "", "other than that of the scheme", SEMCONV, "its port"),
        ("call", (names.ERROR_TYPE,), "string", "", "the call failed", SEMCONV, "class of the exception; the status of the span is ERROR"),
        ("call", (names.INPUT_TOKENS, names.OUTPUT_TOKENS), "int", "{token}", "usage is known", SEMCONV, "inclusive totals: cached and reasoning tokens are in them"),
        ("call", (names.CACHE_READ_TOKENS, names.REASONING_TOKENS), "int", "{token}", "not 0", SEMCONV, "parts of the totals"),
        ("call", (names.CACHE_WRITE_TOKENS,), "int", "{token}", 'not 0; `semconv="compat"`', SEMCONV, "part of the input"),
        ("call", (names.CACHE_WRITE_TOKENS_LATEST,), "int", "{token}", f"not 0; `{_LATEST}`", GENAI, "the same under its new name"),
        (
            "call",
            (names.TEXT_INPUT_LATEST, names.TEXT_OUTPUT_LATEST, names.TEXT_CACHE_READ_LATEST, names.IMAGE_INPUT_LATEST, names.IMAGE_OUTPUT_LATEST, names.IMAGE_CACHE_READ_LATEST,
             names.AUDIO_INPUT_LATEST, names.AUDIO_OUTPUT_LATEST, names.AUDIO_CACHE_READ_LATEST),
            "int", "{token}", f"not 0; `{_LATEST}`", GENAI, "parts of the totals by modality",
        ),
        ("call", (names.TIME_TO_FIRST_CHUNK,), "double", "s", "a stream", SEMCONV, "from the request to the first piece"),
        ("call", (names.OPENAI_REQUEST_TIER,), "string", "", "the request to OpenAI names one other than `auto`", SEMCONV, "the tier that was asked for"),
        ("call", (names.OPENAI_SERVICE_TIER,), "string", "", "OpenAI; the answer says it", SEMCONV, "the tier that decides the price"),
        ("call", (names.OPENAI_API_TYPE,), "string", "", "OpenAI", SEMCONV, "`chat_completions`, `responses`"),
        ("call", (names.AZURE_NAMESPACE,), "string", "", "Azure", SEMCONV, "`Microsoft.CognitiveServices`"),
        ("call", (names.COST_TOTAL,), "double", "currency", _COST, OWN, "what the call has cost"),
        ("call", (names.COST_CURRENCY,), "string", "", _COST, OWN, "ISO 4217, always with the total"),
        (
            "call",
            tuple(names.COST_PREFIX + part for part in ("input", "output", "cache_read", "cache_write", "tools", "other")),
            "double", "currency", "not 0", OWN, "parts that add up to the total",
        ),
        ("call", (names.COST_REASONING,), "double", "currency", "reasoning has a price of its own", OWN, "part of `aifinops.cost.output`"),
        ("call", (names.COST_LIST,), "double", "currency", "a contract of yours makes it another", OWN, "the same at list prices"),
        ("call", (names.COST_BASIS,), "string", "", "always", OWN, "how the amount came about: `reported`, `priced`, `estimated`, `free`, `committed`, `unknown_price`"),
        ("call", (names.COST_SOURCE,), "string", "", _COST, OWN, "`provider` where the answer says the cost, else `local`"),
        ("call", (names.PRICE_ID, names.PRICE_VERSION, names.PRICE_TIER), "string", "", _COST, OWN, "which price was used"),
        ("call", (names.RECORD_ID,), "string", "", "there is a row", OWN, "id of the row in the ledger"),
        ("call", (names.USAGE_PREFIX + "*",), "int", "{token}", "not 0", OWN, "what has no name in the conventions: how long cache entries live, calls of the provider's tools"),
        ("call", (names.BUDGET_ACTION, names.BUDGET_ID), "string", "", "a budget changed the call", OWN, "what was changed (`downgrade`, `clamp`, `cut`, `ask`), and by which budget"),
        ("call", (names.ASKED_MODEL, names.ASKED_OUTPUT), "string", "", "a budget changed the call", OWN, "what the caller had asked for"),
        ("call", (*sorted(value for value in names.TAGS.values() if value.startswith(("aifinops.", "gen_ai.")) and value not in (names.BUDGET_ACTION, names.BUDGET_ID, names.ASKED_MODEL, names.ASKED_OUTPUT)),), "string", "", _TAG, OWN, "tags with a name of their own"),
        ("call", (names.TAG_PREFIX + "*",), "string", "", _TAG, OWN, "any other tag"),
        ("call", (names.INPUT_MESSAGES, names.OUTPUT_MESSAGES, names.SYSTEM_INSTRUCTIONS), "string", "", "content is asked for", SEMCONV, "what was said, as JSON"),
        ("call", (names.COMPAT_COST,), "double", "USD", "dialect `compat`; USD", "de facto", "the total, for Langfuse, OpenLIT and SigNoz"),
        ("block", (names.WORKFLOW_NAME,), "string", "", "always", SEMCONV, "name of the block"),
        ("block", (names.AGGREGATE_COST,), "double", "currency", "calls inside have a price", OWN, "what they add up to"),
        ("block", (names.AGGREGATE_CURRENCY,), "string", "", "with the cost", OWN, "ISO 4217"),
        ("block", (names.AGGREGATE_CALLS,), "int", "{call}", "always", OWN, "calls inside"),
        ("block", (names.AGGREGATE_UNPRICED,), "int", "{call}", "not 0", OWN, "of which the price is unknown"),
        ("block", (names.AGGREGATE_INPUT, names.AGGREGATE_OUTPUT), "int", "{token}", "always", OWN, "their tokens"),
        ("block", (names.BUDGET_ID, names.BUDGET_ACTION), "string", "", "a budget decided", OWN, "which budget, and what it did"),
        ("block", (names.BUDGET_LIMIT, names.BUDGET_SPENT), "double", "unit of the budget", "a budget decided", OWN, "its figures then"),
        ("gpu", (names.GPU_COUNT,), "int", "{device}", "always", OWN, "devices that this process held"),
        ("gpu", (names.GPU_MODEL, names.GPU_UUIDS), "string, string[]", "", "devices were found", OWN, "which"),
        ("gpu", (names.GPU_ALLOCATED,), "double", "s", "always", OWN, "device-seconds; what the bill is"),
        ("gpu", (names.CPU_COUNT, names.CPU_MACHINE), "double, int", "{cpu}", "no accelerators", OWN, "processors that are paid for, and those of the machine"),
        ("gpu", (names.CPU_SOURCE,), "string", "", "no accelerators", OWN, "what says how many: `cgroup`, `affinity` or `machine`"),
        ("gpu", (names.CPU_ALLOCATED,), "double", "s", "no accelerators", OWN, "vCPU-seconds; what the bill is"),
        ("gpu", (names.GPU_STEPS,), "int", "{step}", "always", OWN, "optimizer steps"),
        ("gpu", (names.GPU_BUSY, names.GPU_BUSY_ERROR), "double", "s", "measured", OWN, "device-seconds with at least one kernel, and how far they may be off"),
        ("gpu", (names.GPU_BUSY_SOURCE,), "string", "", "measured", OWN, "how they were measured"),
        ("gpu", (names.GPU_SM_ACTIVE, names.GPU_TENSOR_ACTIVE), "double", "s", "measured", OWN, "work of the hardware"),
        ("gpu", (names.GPU_MFU,), "double", "1", "FLOPs are stated", OWN, "what of the peak was the model's"),
        ("gpu", (names.GPU_MEMORY,), "double", "GiB.s", "measured", OWN, "memory over time"),
        ("gpu", (names.GPU_ENERGY,), "double", "J", "measured", OWN, "energy"),
        ("gpu", (names.CO2_KG,), "double", "kg", _CO2, OWN, "CO2e of that energy"),
        ("gpu", (names.CO2_INTENSITY,), "double", "g/kWh", _CO2, OWN, "of the grid"),
        ("gpu", (names.CO2_COUNTRY, names.CO2_SOURCE), "string", "", _CO2, OWN, "whose grid that is, and who says it"),
        ("gpu", (names.CO2_YEAR,), "int", "", _CO2, OWN, "of which it is an average; left out where the grams were given"),
        ("gpu", (names.ENERGY_KWH, names.ENERGY_PUE), "double", "kWh, 1", _CO2, OWN, "energy with what the room takes, and the factor for that"),
        ("gpu", (names.ENERGY_PUE_SOURCE,), "string", "", _CO2, OWN, "who says it; left out where nobody does, and the factor is 1"),
        ("gpu", (names.GPU_ATTRIBUTION,), "string", "", "measured", OWN, "whose the measured figures are"),
        ("gpu", (names.GPU_STALL,), "double", "s", "always", OWN, "the loop waited for data"),
        ("gpu", (names.GPU_DEVICE_STALL,), "double", "s", "measured by events", OWN, "the device waited for the loop between two steps"),
        ("gpu", (names.GPU_WASTED,), "double", "s", "always", OWN, "device-seconds since the last checkpoint"),
        ("gpu", (names.COST_TOTAL, names.GPU_IDLE_COST), "double", "currency", _COST, OWN, "what was allocated cost, and what of it was not busy"),
        ("gpu", (names.COST_CURRENCY,), "string", "", _COST, OWN, "ISO 4217"),
        ("gpu", (names.GPU_RATE,), "double", "USD/h", _COST, OWN, "of all devices of the run"),
        ("gpu", (names.PRICE_AS_OF, names.PRICE_SOURCE), "string", "", _COST, OWN, "the day and the source of the price"),
        ("gpu", (names.PHASE_PREFIX + "*",), "double", "s", "not 0", OWN, "seconds of each phase"),
        ("gpu", (names.TAGS["run"], names.TAGS["attempt"], names.TAGS["rank"]), "string", "", "always", OWN, "which run, attempt and rank"),
        ("gpu", (names.PHASE,), "string", "", "the span of a phase", OWN, "which phase"),
        ("budget event", (names.BUDGET_PREFIX + "*",), "string", "", "an alert", OWN, "kind, budget, unit, limit, spent, share, amount, seconds, resets_at, text"),
        ("idle event", (names.GPU_IDLE_PREFIX + "*",), "string", "", "a device does nothing", OWN, "run, devices, seconds, amount (of an hour), unit, text, kind"),
        ("metric", (names.COST_KIND,), "string", "", "always", OWN, "`llm`, `gpu`, `storage`, `vector` or another service"),
        ("metric", (names.COST_COMPONENT,), "string", "", "`aifinops.cost`", OWN, "`input`, `output`, `cache_read`, `cache_write`, `tools`, `gpu`, `cpu`, `other`"),
        ("metric", (names.OWN_TOKEN_TYPE,), "string", "", "`aifinops.tokens`", OWN, "`input_fresh`, `cache_read`, `cache_write`, `output`, `reasoning`; disjoint but for the last, which is part of the output"),
        ("metric", (names.TOKEN_TYPE,), "string", "", "`gen_ai.client.token.usage`", SEMCONV, "`input`, `output`; with dialect `agento11y` also `cache_read`, `cache_write`, `reasoning`, which are parts of those"),
        ("metric", (names.TOKEN_MODALITY_LATEST,), "string", "", f"`{_LATEST}`", GENAI, "`text`, `image`, `audio`, `unknown`"),
        ("metric", (names.GPU_STATE,), "string", "", "`aifinops.gpu.time`", OWN, "`allocated`, `busy`, `idle`, `stall`"),
        ("metric", (names.BUDGET_ID, names.BUDGET_PERIOD, names.BUDGET_UNIT), "string", "", "`aifinops.budget.*`", OWN, "name, window and unit of a budget"),
        ("metric", (names.BUDGET_ACTION,), "string", "", "`aifinops.budget.decisions`", OWN, "`allow`, `block`, `let_through`, `wait`, or how a call was changed"),
        ("metric", (names.HW_ID, names.HW_TYPE, names.HW_MODEL, names.HW_VENDOR), "string", "", "`hw.*`", HARDWARE, "UUID, `gpu`, model and vendor of a device"),
        ("metric", (names.HW_PARENT,), "string", "", "a slice of a device", HARDWARE, "UUID of the device"),
        ("metric", (names.HW_GPU_TASK,), "string", "", "`hw.gpu.utilization`", HARDWARE, "`general`"),
        ("metric", (names.PLACE,), "string", "", "`aifinops.internal.failures`", OWN, "where in our code"),
        ("metric", (names.SIGNAL,), "string", "", "`aifinops.export.errors`", OWN, "`traces`, `metrics`, `logs`"),
    )
)  # fmt: skip
"""Every attribute, by the table of the reference page that tells of it."""

_CALL = "provider, model, operation, tags"
_USAGE = f"provider, model, operation, `{names.TOKEN_MODALITY_LATEST}`"

METRICS = tuple(
    Metric(*row)
    for row in (
        (names.METRIC_COST, "counter", "{currency}", f"`{names.COST_CURRENCY}`, `{names.COST_KIND}`, `{names.COST_COMPONENT}`, {_CALL}", "always", OWN, "Cost by component, in aifinops.cost.currency"),
        (names.METRIC_OPERATION_COST, "histogram", "{currency}", f"`{names.COST_CURRENCY}`, `{names.COST_KIND}`, {_CALL}, `{names.ERROR_TYPE}`", "always", OWN, "Cost of one call", names.COST_BUCKETS),
        (names.METRIC_TOKENS, "counter", "{token}", f"`{names.OWN_TOKEN_TYPE}`, `{names.COST_KIND}`, {_CALL}", "always", OWN, "Tokens by disjoint type; reasoning is part of output"),
        (names.METRIC_CALLS, "counter", "{call}", f"`{names.COST_KIND}`, {_CALL}, `{names.ERROR_TYPE}`", "always", OWN, "Metered calls"),
        (names.METRIC_PRICE_MISSING, "counter", "{call}", f"`{names.COST_KIND}`, {_CALL}", "always", OWN, "Calls whose price is unknown"),
        (names.METRIC_TOKEN_USAGE, "histogram", "{token}", f"`{names.TOKEN_TYPE}`, {_CALL}, `{names.ERROR_TYPE}`", f'{_ALONE}; `semconv="compat"`', SEMCONV, "Number of input and output tokens used", names.TOKEN_BUCKETS),
        (names.METRIC_DURATION, "histogram", "s", f"{_CALL}, `{names.ERROR_TYPE}`", f'{_ALONE}; with `{_LATEST}` only operations that are neither inference nor embeddings', SEMCONV, "GenAI operation duration", names.SECONDS_BUCKETS),
        (names.METRIC_TIME_TO_FIRST_CHUNK, "histogram", "s", _CALL, f'{_ALONE}; streams; `semconv="compat"`', SEMCONV, "Time to receive the first chunk of a stream", names.SECONDS_BUCKETS),
        (names.METRIC_DURATION_LATEST, "histogram", "s", f"{_CALL}, `{names.ERROR_TYPE}`", f"{_ALONE}; inference; `{_LATEST}`", GENAI, "Duration of one inference", names.SECONDS_BUCKETS),
        (names.METRIC_TIME_TO_FIRST_CHUNK_LATEST, "histogram", "s", _CALL, f"{_ALONE}; inference; streams; `{_LATEST}`", GENAI, "Time to receive the first chunk of a stream", names.SECONDS_BUCKETS),
        (names.METRIC_INPUT_LATEST, "counter", "{token}", _USAGE, f"{_ALONE}; inference; `{_LATEST}`", GENAI, "Input tokens, cached ones included"),
        (names.METRIC_OUTPUT_LATEST, "counter", "{token}", _USAGE, f"{_ALONE}; inference; `{_LATEST}`", GENAI, "Output tokens, reasoning included"),
        (names.METRIC_CACHE_READ_LATEST, "counter", "{token}", _USAGE, f"{_ALONE}; inference; `{_LATEST}`", GENAI, "Input tokens served from a cache; part of the input tokens"),
        (names.METRIC_CACHE_WRITE_LATEST, "counter", "{token}", _USAGE, f"{_ALONE}; inference; `{_LATEST}`", GENAI, "Input tokens written to a cache; part of the input tokens"),
        (names.METRIC_REASONING_LATEST, "counter", "{token}", _USAGE, f"{_ALONE}; inference; `{_LATEST}`", GENAI, "Output tokens of reasoning; part of the output tokens"),
        (names.METRIC_CALL_INPUT_LATEST, "histogram", "{token}", f"{_CALL}, `{names.ERROR_TYPE}`", f"{_ALONE}; inference; `{_LATEST}`", GENAI, "Input tokens of one inference", names.TOKEN_BUCKETS),
        (names.METRIC_CALL_OUTPUT_LATEST, "histogram", "{token}", f"{_CALL}, `{names.ERROR_TYPE}`", f"{_ALONE}; inference; `{_LATEST}`", GENAI, "Output tokens of one inference", names.TOKEN_BUCKETS),
        (names.METRIC_EMBEDDINGS_DURATION_LATEST, "histogram", "s", f"{_CALL}, `{names.ERROR_TYPE}`", f"{_ALONE}; embeddings; `{_LATEST}`", GENAI, "Duration of one embeddings operation", names.SECONDS_BUCKETS),
        (names.METRIC_EMBEDDINGS_INPUT_LATEST, "histogram", "{token}", f"{_CALL}, `{names.ERROR_TYPE}`", f"{_ALONE}; embeddings; `{_LATEST}`", GENAI, "Input tokens of one embeddings operation", names.TOKEN_BUCKETS),
        (names.METRIC_BUDGET_LIMIT, "gauge", "{unit}", f"`{names.BUDGET_ID}`, `{names.BUDGET_PERIOD}`, `{names.BUDGET_UNIT}`", "budgets with a name", OWN, "Limit in the present window"),
        (names.METRIC_BUDGET_SPENT, "gauge", "{unit}", f"`{names.BUDGET_ID}`, `{names.BUDGET_PERIOD}`, `{names.BUDGET_UNIT}`", "budgets with a name", OWN, "Spent in the present window"),
        (names.METRIC_BUDGET_REMAINING, "gauge", "{unit}", f"`{names.BUDGET_ID}`, `{names.BUDGET_PERIOD}`, `{names.BUDGET_UNIT}`", "budgets with a name", OWN, "Neither spent nor held, in the present window"),
        (names.METRIC_BUDGET_UTILIZATION, "gauge", "1", f"`{names.BUDGET_ID}`, `{names.BUDGET_PERIOD}`, `{names.BUDGET_UNIT}`", "budgets with a name", OWN, "Spent part of the limit"),
        (names.METRIC_BUDGET_BURN_RATE, "gauge", "1", f"`{names.BUDGET_ID}`, `{names.BUDGET_PERIOD}`, `{names.BUDGET_UNIT}`", "budgets with a name and a window", OWN, "Spending rate over the rate that just uses up the limit in the window"),
        (names.METRIC_BUDGET_DECISIONS, "counter", "{decision}", f"`{names.BUDGET_ID}`, `{names.BUDGET_ACTION}`", "budgets with a name", OWN, "Decisions of budgets about calls"),
        (names.METRIC_GPU_TIME, "counter", "s", f"`{names.GPU_STATE}`, `{names.COST_KIND}`, {_CALL}", "runs on GPUs", OWN, "Device time by state; busy and idle are known for part of it"),
        (names.METRIC_HW_UTILIZATION, "gauge", "1", f"`{names.HW_GPU_TASK}`, `{names.HW_ID}`, `{names.HW_TYPE}`, `{names.HW_MODEL}`, `{names.HW_VENDOR}`, `{names.HW_PARENT}`", "a run on GPUs is open", HARDWARE, "Busy part of the time since the last collection"),
        (names.METRIC_HW_MEMORY_USAGE, "updowncounter", "By", "the same without task", "a run on GPUs is open", HARDWARE, "GPU memory in use"),
        (names.METRIC_HW_MEMORY_LIMIT, "updowncounter", "By", "the same without task", "a run on GPUs is open", HARDWARE, "Size of the GPU memory"),
        (names.METRIC_HW_MEMORY_UTILIZATION, "gauge", "1", "the same without task", "a run on GPUs is open", HARDWARE, "Part of the GPU memory in use"),
        (names.METRIC_HW_ENERGY, "counter", "J", "the same without task", "a run on GPUs is open", HARDWARE, "Energy since the run began"),
        (names.METRIC_HW_POWER, "gauge", "W", "the same without task", "a run on GPUs is open", HARDWARE, "Mean power since the last collection"),
        (names.METRIC_LEDGER_DROPPED, "counter", "{record}", "", "always", OWN, "Records that could not be kept"),
        (names.METRIC_EXPORT_ERRORS, "counter", "{record}", f"`{names.SIGNAL}`", "the exporter is ours, or wrapped", OWN, "Spans, metrics or log records that an exporter could not deliver"),
        (names.METRIC_FAILURES, "counter", "{failure}", f"`{names.PLACE}`", "always", OWN, "Internal failures that were swallowed"),
    )
)  # fmt: skip
"""Every instrument of ours; those of dialects are in `aifinops.telemetry.dialects`."""
