"""Every attribute, metric and event name that we emit, once.

`gen_ai.*`, `server.*`, `error.type` and `openai.*` follow the OpenTelemetry semantic conventions 1.41.1
(https://github.com/open-telemetry/semantic-conventions/tree/v1.41.1/docs/gen-ai); no cost attribute is official there, so
money lives under `aifinops.*`. The constants are written out because the `_incubating` modules change between minor releases.
"""

from __future__ import annotations

__all__: list[str] = []  # a table of constants: import the module, not its names

SCOPE = "aifinops"
SCHEMA_URL = "https://opentelemetry.io/schemas/1.41.1"

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
REASONING_TOKENS = "gen_ai.usage.reasoning.output_tokens"
TOKEN_TYPE = "gen_ai.token.type"
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
OPENAI_API_TYPE = "openai.api.type"

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
BUDGET_LIMIT = "aifinops.budget.limit"
BUDGET_SPENT = "aifinops.budget.spent"
BUDGET_ACTION = "aifinops.budget.action"
ASKED_MODEL = "aifinops.request.asked_model"
ASKED_OUTPUT = "aifinops.request.asked_max_tokens"
EVENT_BUDGET_EXCEEDED = "aifinops.budget.exceeded"
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
METRIC_GPU_TIME = "aifinops.gpu.time"
METRIC_FAILURES = "aifinops.internal.failures"
METRIC_TOKEN_USAGE = "gen_ai.client.token.usage"
METRIC_DURATION = "gen_ai.client.operation.duration"
METRIC_TIME_TO_FIRST_CHUNK = "gen_ai.client.operation.time_to_first_chunk"

TOKEN_BUCKETS = tuple(4**power for power in range(14))
SECONDS_BUCKETS = tuple(0.01 * 2**power for power in range(14))
COST_BUCKETS = (0.00001, 0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 100)


def component(meter_name: str) -> str:
    """Which part of the bill a meter belongs to: `cache_read`, `cache_write`, `input`, `output`, `tools`, `gpu`, `other`."""
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
    if meter_name == "gpu_seconds":
        return "gpu"
    return "tools" if meter_name.endswith(("_requests", "_calls", "_sessions")) else "other"
