"""The hub: the life of one metered call. Open, then settle, fail or abandon, exactly once.

    begin   tags and budgets from the scope → upper bound → reserve (may refuse) → span ids
    settle  usage from the answer → price → budget → ledger → trackers → span → metrics

Only `BudgetExceeded` reaches the call, and only from `begin`.

    opening, recording, blocks       what is called from outside
    watched                          calls of which only the answer says what they are
    invocation                       one call, from its beginning to its end
    holding, fitting                 room for it; what becomes of it where there is none
    charging, telling                what it has cost; who is told
    bounds, estimates, units         how much, as functions of a call and the price list
    call, seen, deferred, waiting    what the others are made of
"""

from aifinops.metering.blocks import attach_span, block_span, budget_figures, detach_span, end_block_span
from aifinops.metering.call import Call, Changer
from aifinops.metering.deferred import drain, enqueue, settle_later
from aifinops.metering.estimates import ALLOWANCE
from aifinops.metering.invocation import Invocation, ending, in_flight
from aifinops.metering.opening import begin, observe, watch
from aifinops.metering.recording import charge_of, record, record_held, record_reading
from aifinops.metering.seen import Charged, charged
from aifinops.metering.waiting import begin_patiently
from aifinops.metering.watched import Watched, Watcher

__all__ = [
    "ALLOWANCE",
    "Call",
    "Changer",
    "Charged",
    "Invocation",
    "Watched",
    "Watcher",
    "attach_span",
    "begin",
    "begin_patiently",
    "block_span",
    "budget_figures",
    "charge_of",
    "charged",
    "detach_span",
    "drain",
    "end_block_span",
    "ending",
    "enqueue",
    "in_flight",
    "observe",
    "record",
    "record_held",
    "record_reading",
    "settle_later",
    "watch",
]
