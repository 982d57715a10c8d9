"""Every attribute, metric and event name that we emit, once.

`gen_ai.*`, `server.*`, `error.type` and `openai.*` follow the OpenTelemetry semantic conventions 1.41.1
(https://github.com/open-telemetry/semantic-conventions/tree/v1.41.1/docs/gen-ai); no cost attribute is official there, so
money lives under `aifinops.*`. The constants are written out because the `_incubating` modules change between minor releases.

Names that end in `_LATEST` are those of the conventions after they moved to https://github.com/open-telemetry/semantic-conventions-genai
(1.42.0-dev; read in November 2026), which are used with `semconv="latest"` in place of the older ones.
What each of them is, with type and unit, is in `aifinops.telemetry.tables`.
"""

from __future__ import annotations

__all__: list[str] = []  # a table of constants: import the module, not its names

SCOPE = "aifinops"
SCHEMA_URL = "https://opentelemetry.io/schemas/1.41.1"
SCHEMA_URL_LATEST = "https://opentelemetry.io/schemas/gen-ai-dev/1.42.0-dev"

# --- GenAI spans -----------------------------------------------------------------------------------------------------
OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
REQUEST_STREAM = "gen_ai.request.stream"
REQUEST_MAX_TOKENS = "gen_ai.request.max_tokens"
RESPONSE_MODEL = "gen_ai.response.model"
RESPONSE_ID = "gen_ai.response.id"
FINISH_REASONS = "gen_ai.response.finish_reasons"
TIME_TO_FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
CACHE_READ_TOKENS = "gen_ai.usage.cache_read.input_tokens"
CACHE_WRITE_TOKENS = "gen_ai.usage.cache_creation.input_tokens"
CACHE_WRITE_TOKENS_LATEST = "gen_ai.usage.cache_write.input_tokens"
REASONING_TOKENS = "gen_ai.usage.reasoning.output_tokens"
TEXT_INPUT_LATEST = "gen_ai.usage.text.input_tokens"
TEXT_OUTPUT_LATEST = "gen_ai.usage.text.output_tokens"
TEXT_CACHE_READ_LATEST = "gen_ai.usage.text.cache_read.input_tokens"
IMAGE_INPUT_LATEST = "gen_ai.usage.image.input_tokens"
IMAGE_OUTPUT_LATEST = "gen_ai.usage.image.output_tokens"
IMAGE_CACHE_READ_LATEST = "gen_ai.usage.image.cache_read.input_tokens"
AUDIO_INPUT_LATEST = "gen_ai.usage.audio.input_tokens"
AUDIO_OUTPUT_LATEST = "gen_ai.usage.audio.output_tokens"
AUDIO_CACHE_READ_LATEST = "gen_ai.usage.audio.cache_read.input_tokens"
TOKEN_TYPE = "gen_ai.token.type"
TOKEN_MODALITY_LATEST = "gen_ai.token.modality"
WORKFLOW_NAME = "gen_ai.workflow.name"
AGENT_NAME = "gen_ai.agent.name"
CONVERSATION_ID = "gen_ai.conversation.id"
INPUT_MESSAGES = "gen_ai.input.messages"
OUTPUT_MESSAGES = "gen_ai.output.messages"
SYSTEM_INSTRUCTIONS = "gen_ai.system_instructions"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"
ERROR_TYPE = "error.type"
OPENAI_SERVICE_TIER = "openai.response.service_tier"
OPENAI_REQUEST_TIER = "openai.request.service_tier"
OPENAI_API_TYPE = "openai.api.type"
AZURE_NAMESPACE = "azure.resource_provider.namespace"

# --- our own ----------------------------------------------------------------------------------------------------------
COST_TOTAL = "aifinops.cost.total"
COST_CURRENCY = "aifinops.cost.currency"
COST_BASIS = "aifinops.cost.basis"
COST_SOURCE = "aifinops.cost.source"
COST_KIND = "aifinops.cost.kind"
COST_COMPONENT = "aifinops.cost.component"
COST_LIST = "aifinops.cost.list"
COST_REASONING = "aifinops.cost.reasoning"
COST_PREFIX = "aifinops.cost."
PRICE_ID = "aifinops.price.id"
PRICE_VERSION = "aifinops.price.version"
PRICE_TIER = "aifinops.price.tier"
RECORD_ID = "aifinops.record.id"
OWN_TOKEN_TYPE = "aifinops.token.type"
USAGE_PREFIX = "aifinops.usage."
BUDGET_ALERT = "aifinops.budget.alert"
BUDGET_PREFIX = "aifinops.budget."
AGGREGATE_COST = "aifinops.aggregate.cost.total"
AGGREGATE_CURRENCY = "aifinops.aggregate.cost.currency"
AGGREGATE_CALLS = "aifinops.aggregate.calls"
AGGREGATE_UNPRICED = "aifinops.aggregate.unpriced_calls"
AGGREGATE_INPUT = "aifinops.aggregate.input_tokens"
AGGREGATE_OUTPUT = "aifinops.aggregate.output_tokens"
BUDGET_ID = "aifinops.budget.id"
BUDGET_PERIOD = "aifinops.budget.period"
BUDGET_UNIT = "aifinops.budget.unit"
BUDGET_LIMIT = "aifinops.budget.limit"
BUDGET_SPENT = "aifinops.budget.spent"
BUDGET_ACTION = "aifinops.budget.action"
ASKED_MODEL = "aifinops.request.asked_model"
ASKED_OUTPUT = "aifinops.request.asked_max_tokens"
EVENT_BUDGET_EXCEEDED = "aifinops.budget.exceeded"
EVENT_COST_RECORDED = "aifinops.cost.recorded"
PLACE = "aifinops.place"
SIGNAL = "aifinops.signal"
GPU_COUNT = "aifinops.gpu.count"
GPU_MODEL = "aifinops.gpu.model"
GPU_ALLOCATED = "aifinops.gpu.allocated_s"
GPU_UUIDS = "aifinops.gpu.uuids"
GPU_BUSY = "aifinops.gpu.busy_s"
GPU_BUSY_SOURCE = "aifinops.gpu.busy.source"
GPU_BUSY_ERROR = "aifinops.gpu.busy.error_s"
GPU_STALL = "aifinops.gpu.stall_s"
GPU_DEVICE_STALL = "aifinops.gpu.device_stall_s"
GPU_SM_ACTIVE = "aifinops.gpu.sm_active_s"
GPU_TENSOR_ACTIVE = "aifinops.gpu.tensor_active_s"
GPU_MEMORY = "aifinops.gpu.memory_gib_s"
GPU_ENERGY = "aifinops.gpu.energy_j"
GPU_MFU = "aifinops.gpu.mfu"
GPU_ATTRIBUTION = "aifinops.gpu.attribution"
CO2_KG = "aifinops.co2.kg"
CO2_INTENSITY = "aifinops.co2.grams_per_kwh"
CO2_COUNTRY = "aifinops.co2.country"
CO2_YEAR = "aifinops.co2.year"
CO2_SOURCE = "aifinops.co2.source"
ENERGY_KWH = "aifinops.energy.kwh"
ENERGY_PUE = "aifinops.energy.pue"
ENERGY_PUE_SOURCE = "aifinops.energy.pue.source"
CPU_COUNT = "aifinops.cpu.count"
CPU_MACHINE = "aifinops.cpu.machine"
CPU_SOURCE = "aifinops.cpu.source"
CPU_ALLOCATED = "aifinops.cpu.allocated_s"
GPU_STATE = "aifinops.gpu.state"
GPU_STEPS = "aifinops.gpu.steps"
GPU_WASTED = "aifinops.gpu.wasted_s"
GPU_IDLE = "aifinops.gpu.idle"
GPU_IDLE_PREFIX = "aifinops.gpu.idle."
GPU_IDLE_COST = "aifinops.cost.idle"
GPU_RATE = "aifinops.price.usd_per_hour"
PRICE_AS_OF = "aifinops.price.as_of"
PRICE_SOURCE = "aifinops.price.source"
PHASE = "aifinops.phase"
PHASE_PREFIX = "aifinops.phase."

TAGS = {
    "team": "aifinops.team",
    "project": "aifinops.project",
    "feature": "aifinops.feature",
    "customer": "aifinops.customer",
    "cost_center": "aifinops.cost_center",
    "environment": "aifinops.environment",
    "run": "aifinops.run.id",
    "attempt": "aifinops.run.attempt",
    "rank": "aifinops.run.rank",
    "phase": PHASE,
    "agent": AGENT_NAME,
    "conversation": CONVERSATION_ID,
    "budget_action": BUDGET_ACTION,
    "budget_name": BUDGET_ID,
    "asked_model": ASKED_MODEL,
    "asked_output": ASKED_OUTPUT,
}
"""Tag -> attribute. The last four are ours: what a budget has had changed of a call."""
TAG_PREFIX = "aifinops.tag."

# Langfuse, OpenLIT and SigNoz dashboards read this one (USD only); part of the `compat` dialect.
COMPAT_COST = "gen_ai.usage.cost"

# --- metrics ----------------------------------------------------------------------------------------------------------
METRIC_COST = "aifinops.cost"
METRIC_OPERATION_COST = "aifinops.client.operation.cost"
METRIC_TOKENS = "aifinops.tokens"
METRIC_CALLS = "aifinops.calls"
METRIC_PRICE_MISSING = "aifinops.price.missing"
METRIC_LEDGER_DROPPED = "aifinops.ledger.dropped"
METRIC_EXPORT_ERRORS = "aifinops.export.errors"
METRIC_GPU_TIME = "aifinops.gpu.time"
METRIC_FAILURES = "aifinops.internal.failures"
METRIC_BUDGET_LIMIT = "aifinops.budget.limit"
METRIC_BUDGET_SPENT = "aifinops.budget.spent"
METRIC_BUDGET_REMAINING = "aifinops.budget.remaining"
METRIC_BUDGET_UTILIZATION = "aifinops.budget.utilization"
METRIC_BUDGET_BURN_RATE = "aifinops.budget.burn_rate"
METRIC_BUDGET_DECISIONS = "aifinops.budget.decisions"
METRIC_TOKEN_USAGE = "gen_ai.client.token.usage"
METRIC_DURATION = "gen_ai.client.operation.duration"
METRIC_TIME_TO_FIRST_CHUNK = "gen_ai.client.operation.time_to_first_chunk"
METRIC_DURATION_LATEST = "gen_ai.client.inference.duration"
METRIC_TIME_TO_FIRST_CHUNK_LATEST = "gen_ai.client.inference.time_to_first_chunk"
METRIC_INPUT_LATEST = "gen_ai.client.inference.usage.input_tokens"
METRIC_OUTPUT_LATEST = "gen_ai.client.inference.usage.output_tokens"
METRIC_CACHE_READ_LATEST = "gen_ai.client.inference.usage.cache_read.input_tokens"
METRIC_CACHE_WRITE_LATEST = "gen_ai.client.inference.usage.cache_write.input_tokens"
METRIC_REASONING_LATEST = "gen_ai.client.inference.usage.reasoning.output_tokens"
METRIC_CALL_INPUT_LATEST = "gen_ai.client.inference.operation.input_tokens"
METRIC_CALL_OUTPUT_LATEST = "gen_ai.client.inference.operation.output_tokens"
METRIC_EMBEDDINGS_DURATION_LATEST = "gen_ai.client.embeddings.duration"
METRIC_EMBEDDINGS_INPUT_LATEST = "gen_ai.client.embeddings.operation.input_tokens"
METRIC_HW_UTILIZATION = "hw.gpu.utilization"
METRIC_HW_MEMORY_USAGE = "hw.gpu.memory.usage"
METRIC_HW_MEMORY_LIMIT = "hw.gpu.memory.limit"
METRIC_HW_MEMORY_UTILIZATION = "hw.gpu.memory.utilization"
METRIC_HW_ENERGY = "hw.energy"
METRIC_HW_POWER = "hw.power"
HW_ID = "hw.id"
HW_TYPE = "hw.type"
HW_MODEL = "hw.model"
HW_VENDOR = "hw.vendor"
HW_PARENT = "hw.parent"
HW_GPU_TASK = "hw.gpu.task"

MODALITIES_LATEST = ("text", "image", "audio")
"""What `gen_ai.usage.*` and `gen_ai.token.modality` tell apart; the rest is `unknown`."""

INFERENCE = frozenset({"chat", "text_completion", "generate_content"})
"""Operations that the conventions call inference; embeddings and the rest have metrics of their own or none."""

TOKEN_BUCKETS = tuple(4**power for power in range(14))
SECONDS_BUCKETS = tuple(0.01 * 2**power for power in range(14))
COST_BUCKETS = (0.00001, 0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 100)


def component(meter_name: str) -> str:
    """Which part of the bill a meter belongs to: `cache_read`, `cache_write`, `input`, `output`, `tools`, `gpu`, `cpu`, `other`."""
    found = _components.get(meter_name)
    if found is None:
        found = _components[meter_name] = _component(meter_name)
    return found


_components: dict[str, str] = {}


def _component(meter_name: str) -> str:
    for prefix in ("cache_read", "cache_write", "input", "output"):
        if meter_name.startswith(prefix):
            return prefix
    if meter_name == "reasoning_tokens":
        return "output"
    if meter_name in {"gpu_seconds", "cpu_seconds"}:
        return meter_name[:3]
    return "tools" if meter_name.endswith(("_requests", "_calls", "_sessions")) else "other"
