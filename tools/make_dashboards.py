"""Make the Grafana dashboards in dashboards/grafana from the tables below.

    pip install grafana-foundation-sdk
    python tools/make_dashboards.py [--check]

Queries are PromQL over the metrics as Prometheus, Mimir and the collector's Prometheus exporters name them. Gauges of unit `1` have
`_ratio` at their end or not, depending on who translated them, so queries name them by a pattern. `$currency`, `$team`, `$model` and
`$provider` are variables of every dashboard; amounts in different currencies are never added.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "dashboards" / "grafana"

_WHO = 'aifinops_team=~"$team", gen_ai_request_model=~"$model", gen_ai_provider_name=~"$provider"'
_COST = f'aifinops_cost_total{{aifinops_cost_currency="$currency", {_WHO}}}'
_TOKENS = f"aifinops_tokens_total{{{_WHO}}}"
_CALLS = f"aifinops_calls_total{{{_WHO}}}"
_EACH = f"aifinops_client_operation_cost_bucket{{{_WHO}}}"
_GPU = 'aifinops_gpu_time_seconds_total{aifinops_team=~"$team"}'
_GPU_COST = 'aifinops_cost_total{aifinops_cost_currency="$currency", aifinops_cost_kind="gpu", aifinops_team=~"$team"}'
_BUDGET = '{aifinops_budget_id=~"$budget"}'


def _gpu(state: str) -> str:
    return _GPU.replace("}", f', aifinops_gpu_state="{state}"}}')


def _tokens(kind: str) -> str:
    return _TOKENS.replace("}", f', aifinops_token_type="{kind}"}}')


def _component(name: str) -> str:
    return _COST.replace("}", f', aifinops_cost_component="{name}"}}')


@dataclass(frozen=True)
class Query:
    """One query of a panel: PromQL, the legend, and whether it is asked at one moment only."""

    expr: str
    legend: str = ""
    instant: bool = False


@dataclass(frozen=True)
class Panel:
    """One panel: `kind` is `stat`, `line`, `stack`, `bars`, `table` or `pie`; `width` of 24; `warn`: (above what, in which colour)."""

    title: str
    kind: str
    queries: tuple[Query, ...]
    unit: str = "none"
    width: int = 12
    text: str = ""
    warn: tuple[tuple[float, str], ...] = ()
    decimals: int | None = None
    height: int = 8


@dataclass(frozen=True)
class Board:
    """One dashboard: name of its file, title, what it is for, rows of panels, and its variables beside the data source."""

    name: str
    title: str
    text: str
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]
    variables: tuple[str, ...] = ("currency", "team", "model", "provider")


def _q(expr: str, legend: str = "", *, instant: bool = False) -> tuple[Query, ...]:
    return (Query(expr, legend, instant),)


_RED = ((0, "green"), (1e-9, "red"))
_MONEY = "currencyUSD"  # the variable chooses the currency; Grafana has no unit that follows a variable

SPEND = Board(
    "spend",
    "AI spend",
    "Who spends what, on which model, feature and provider.",
    (
        ("Now", (
            Panel("Spend in the range", "stat", _q(f"sum(increase({_COST}[$__range]))", instant=True), _MONEY, 6),
            Panel("Spend an hour", "stat", _q(f"sum(rate({_COST}[$__rate_interval])) * 3600"), _MONEY, 6),
            Panel("A month at this pace", "stat", _q(f"sum(rate({_COST}[6h])) * 2629800", instant=True), _MONEY, 6,
                  "The mean of the last six hours, for 30.44 days."),
            Panel("Calls without a price", "stat", _q("sum(increase(aifinops_price_missing_total[$__range])) or vector(0)", instant=True),
                  "short", 3, "They are in no sum of money here: add a price, then aifinops rerate.", _RED),
            Panel("Not written, not sent", "stat", _q(
                "(sum(increase(aifinops_ledger_dropped_total[$__range])) or vector(0))"
                " + (sum(increase(aifinops_export_errors_total[$__range])) or vector(0))", instant=True),
                "short", 3, "Records that the ledger lost, and exports that failed.", _RED),
        )),
        ("Over time", (
            Panel("By team, an hour", "stack", _q(f"sum by (aifinops_team) (rate({_COST}[$__rate_interval])) * 3600", "{{aifinops_team}}"), _MONEY),
            Panel("By model, an hour", "stack", _q(
                f"sum by (gen_ai_request_model) (rate({_COST}[$__rate_interval])) * 3600", "{{gen_ai_request_model}}"), _MONEY),
            Panel("By provider, an hour", "stack", _q(
                f"sum by (gen_ai_provider_name) (rate({_COST}[$__rate_interval])) * 3600", "{{gen_ai_provider_name}}"), _MONEY),
            Panel("By part of the bill, an hour", "stack", _q(
                f"sum by (aifinops_cost_component) (rate({_COST}[$__rate_interval])) * 3600", "{{aifinops_cost_component}}"), _MONEY),
        )),
        ("Where it goes", (
            Panel("Models", "table", _q(
                f"sort_desc(sum by (gen_ai_provider_name, gen_ai_request_model) (increase({_COST}[$__range])))", instant=True), _MONEY),
            Panel("Teams and features", "table", _q(
                f"sort_desc(sum by (aifinops_team, aifinops_feature) (increase({_COST}[$__range])))", instant=True), _MONEY),
            Panel("Calls a second, by outcome", "stack", _q(
                f"sum by (error_type) (rate({_CALLS}[$__rate_interval]))", "{{error_type}}"), "reqps"),
            Panel("This hour beside the same hour a week ago", "line", (
                Query(f"sum(increase({_COST}[1h]))", "this hour"), Query(f"sum(increase({_COST}[1h] offset 1w))", "a week ago")), _MONEY),
        )),
    ),
)  # fmt: skip

UNIT = Board(
    "unit-cost",
    "AI unit cost",
    "What one call, a thousand tokens and a feature cost, and how fast the answers are.",
    (
        ("One call", (
            Panel("Mean cost of a call", "stat", _q(f"sum(increase({_COST}[$__range])) / sum(increase({_CALLS}[$__range]))", instant=True), _MONEY, 6,
                  decimals=5),
            Panel("Cost of a call: half, 90 % and 99 % are below", "line", tuple(
                Query(f"histogram_quantile({share}, sum by (le) (rate({_EACH}[$__rate_interval])))", name)
                for share, name in ((0.5, "half"), (0.9, "90 %"), (0.99, "99 %"))), _MONEY, 18, decimals=5),
            Panel("Mean cost of a call, by model", "line", _q(
                f"sum by (gen_ai_request_model) (rate({_COST}[$__rate_interval])) / sum by (gen_ai_request_model) (rate({_CALLS}[$__rate_interval]))",
                "{{gen_ai_request_model}}"), _MONEY, decimals=5),
            Panel("Mean cost of a call, by feature", "line", _q(
                f"sum by (aifinops_feature) (rate({_COST}[$__rate_interval])) / sum by (aifinops_feature) (rate({_CALLS}[$__rate_interval]))",
                "{{aifinops_feature}}"), _MONEY, decimals=5),
        )),
        ("Tokens", (
            Panel("Cost of a million tokens, by model", "line", _q(
                f"1e6 * sum by (gen_ai_request_model) (rate({_COST}[$__rate_interval]))"
                f' / sum by (gen_ai_request_model) (rate(aifinops_tokens_total{{{_WHO}, aifinops_token_type!="reasoning"}}[$__rate_interval]))',
                "{{gen_ai_request_model}}"), _MONEY),
            Panel("Tokens a second, by kind", "stack", _q(
                f'sum by (aifinops_token_type) (rate(aifinops_tokens_total{{{_WHO}, aifinops_token_type!="reasoning"}}[$__rate_interval]))',
                "{{aifinops_token_type}}"), "short", text="Reasoning is a part of output and is left out."),
            Panel("Share of reasoning in the output", "line", _q(
                f"sum by (gen_ai_request_model) (rate({_tokens('reasoning')}[$__rate_interval]))"
                f" / sum by (gen_ai_request_model) (rate({_tokens('output')}[$__rate_interval]))", "{{gen_ai_request_model}}"), "percentunit"),
            Panel("Output for each token of input", "line", _q(
                f"sum by (gen_ai_request_model) (rate({_tokens('output')}[$__rate_interval]))"
                f' / sum by (gen_ai_request_model) (rate(aifinops_tokens_total{{{_WHO}, aifinops_token_type=~"input_fresh|cache_read|cache_write"}}'
                "[$__rate_interval]))", "{{gen_ai_request_model}}"), "short"),
        )),
        ("Speed", (
            Panel("Duration of a call: 95 % are below", "line", _q(
                "histogram_quantile(0.95, sum by (le, gen_ai_request_model) (rate(gen_ai_client_operation_duration_seconds_bucket{"
                'gen_ai_request_model=~"$model"}[$__rate_interval])))', "{{gen_ai_request_model}}"), "s"),
            Panel("First chunk of a stream: 95 % are below", "line", _q(
                "histogram_quantile(0.95, sum by (le, gen_ai_request_model) (rate(gen_ai_client_operation_time_to_first_chunk_seconds_bucket{"
                'gen_ai_request_model=~"$model"}[$__rate_interval])))', "{{gen_ai_request_model}}"), "s"),
        )),
    ),
)  # fmt: skip

BUDGETS = Board(
    "budgets",
    "AI budgets",
    "What is left, how fast it goes, and what was refused.",
    (
        ("Now", (
            Panel("Used", "bars", _q(
                f"max by (aifinops_budget_id) (aifinops_budget_spent{_BUDGET}) / max by (aifinops_budget_id) (aifinops_budget_limit{_BUDGET})",
                "{{aifinops_budget_id}}", instant=True), "percentunit", 12, "What is spent of the limit; what is held for calls in flight is not in it.",
                ((0, "green"), (0.8, "orange"), (1, "red"))),
            Panel("Left", "table", _q(f"sort(max by (aifinops_budget_id, aifinops_budget_period) (aifinops_budget_remaining{_BUDGET}))", instant=True),
                  "short", 12),
        )),
        ("Pace", (
            Panel("Burn rate", "line", _q(
                f'max by (aifinops_budget_id) ({{__name__=~"aifinops_budget_burn_rate(_ratio)?", {_BUDGET[1:-1]}}})', "{{aifinops_budget_id}}"),
                "short", 12, "1 spends the limit exactly by the end of its period.", ((0, "green"), (1, "orange"), (2, "red"))),
            Panel("Spent", "line", _q(f"max by (aifinops_budget_id) (aifinops_budget_spent{_BUDGET})", "{{aifinops_budget_id}}"), "short", 12),
            Panel("Empty in", "line", _q(
                f"max by (aifinops_budget_id) (aifinops_budget_remaining{_BUDGET})"
                f" / (max by (aifinops_budget_id) (deriv(aifinops_budget_spent{_BUDGET}[30m])) > 0)", "{{aifinops_budget_id}}"), "s", 12,
                "At the pace of the last half hour; nothing is shown of a budget that is not spent from."),
            Panel("Decisions a minute", "stack", _q(
                f"60 * sum by (aifinops_budget_action) (rate(aifinops_budget_decisions_total{_BUDGET}[$__rate_interval]))",
                "{{aifinops_budget_action}}"), "short", 12),
        )),
    ),
    ("budget",),
)  # fmt: skip

GPU = Board(
    "gpu",
    "GPU time and cost",
    "What is held, what of it works, and what the idle part costs.",
    (
        ("Now", (
            Panel("GPUs held", "stat", _q(f"sum(rate({_gpu('allocated')}[$__rate_interval]))"), "short", 6, decimals=1),
            Panel("Busy", "stat", _q(f"sum(rate({_gpu('busy')}[$__rate_interval])) / sum(rate({_gpu('allocated')}[$__rate_interval]))"), "percentunit", 6,
                  "Busy time of the time that is held; where it cannot be measured it is in neither."),
            Panel("Cost an hour", "stat", _q(f"sum(rate({_GPU_COST}[$__rate_interval])) * 3600"), _MONEY, 6),
            Panel("Of it idle", "stat", _q(
                f"3600 * sum(sum by (aifinops_team, gen_ai_request_model) (rate({_GPU_COST}[$__rate_interval]))"
                f" * sum by (aifinops_team, gen_ai_request_model) (rate({_gpu('idle')}[$__rate_interval]))"
                f" / sum by (aifinops_team, gen_ai_request_model) (rate({_gpu('allocated')}[$__rate_interval])))"), _MONEY, 6,
                warn=((0, "green"), (10, "orange"))),
        )),
        ("Over time", (
            Panel("GPUs by state", "line", _q(f"sum by (aifinops_gpu_state) (rate({_GPU}[$__rate_interval]))", "{{aifinops_gpu_state}}"), "short",
                  text="Idle and busy make up what is held; stall is the part of idle that waited for data."),
            Panel("GPUs held, by team", "stack", _q(f"sum by (aifinops_team) (rate({_gpu('allocated')}[$__rate_interval]))", "{{aifinops_team}}"), "short"),
            Panel("Cost an hour, by team", "stack", _q(f"sum by (aifinops_team) (rate({_GPU_COST}[$__rate_interval])) * 3600", "{{aifinops_team}}"), _MONEY),
            Panel("Busy, by team", "line", _q(
                f"sum by (aifinops_team) (rate({_gpu('busy')}[$__rate_interval])) / sum by (aifinops_team) (rate({_gpu('allocated')}[$__rate_interval]))",
                "{{aifinops_team}}"), "percentunit"),
        )),
        ("Devices", (
            Panel("Utilisation", "line", _q('max by (hw_id) ({__name__=~"hw_gpu_utilization(_ratio)?"})', "{{hw_id}}"), "percentunit"),
            Panel("Memory in use", "line", _q("max by (hw_id) (hw_gpu_memory_usage_bytes)", "{{hw_id}}"), "bytes"),
            Panel("Power", "line", _q("max by (hw_id) (hw_power_watts)", "{{hw_id}}"), "watt"),
            Panel("Energy an hour", "line", _q("sum by (hw_id) (rate(hw_energy_joules_total[$__rate_interval])) * 3600", "{{hw_id}}"), "joule"),
        )),
    ),
    ("currency", "team"),
)  # fmt: skip

CACHE = Board(
    "cache",
    "Prompt cache",
    "How much of the input comes from a cache, and what that saves.",
    (
        ("Now", (
            Panel("Input read from a cache", "stat", _q(
                f"sum(increase({_tokens('cache_read')}[$__range]))"
                f' / sum(increase(aifinops_tokens_total{{{_WHO}, aifinops_token_type=~"input_fresh|cache_read|cache_write"}}[$__range]))', instant=True),
                "percentunit", 8),
            Panel("Saved in the range", "stat", _q(
                f"sum(sum by (gen_ai_request_model) (increase({_component('input')}[$__range]))"
                f" / sum by (gen_ai_request_model) (increase({_tokens('input_fresh')}[$__range]))"
                f" * sum by (gen_ai_request_model) (increase({_tokens('cache_read')}[$__range]))"
                f" - sum by (gen_ai_request_model) (increase({_component('cache_read')}[$__range])))", instant=True), _MONEY, 8,
                "What the cached tokens would have cost at the price that the fresh ones of the same model had, less what they did cost."),
            Panel("Spent on writing caches", "stat", _q(f"sum(increase({_component('cache_write')}[$__range]))", instant=True), _MONEY, 8,
                  "Above what is saved, caching does not pay."),
        )),
        ("Over time", (
            Panel("Hit rate, by model", "line", _q(
                f"sum by (gen_ai_request_model) (rate({_tokens('cache_read')}[$__rate_interval])) / sum by (gen_ai_request_model)"
                f' (rate(aifinops_tokens_total{{{_WHO}, aifinops_token_type=~"input_fresh|cache_read|cache_write"}}[$__rate_interval]))',
                "{{gen_ai_request_model}}"), "percentunit"),
            Panel("Hit rate, by feature", "line", _q(
                f"sum by (aifinops_feature) (rate({_tokens('cache_read')}[$__rate_interval])) / sum by (aifinops_feature)"
                f' (rate(aifinops_tokens_total{{{_WHO}, aifinops_token_type=~"input_fresh|cache_read|cache_write"}}[$__rate_interval]))',
                "{{aifinops_feature}}"), "percentunit"),
            Panel("Input tokens a second", "stack", _q(
                "sum by (aifinops_token_type) (rate(aifinops_tokens_total{"
                f'{_WHO}, aifinops_token_type=~"input_fresh|cache_read|cache_write"}}[$__rate_interval]))', "{{aifinops_token_type}}"), "short"),
            Panel("Cost of input, an hour", "stack", _q(
                "sum by (aifinops_cost_component) (rate("
                + _COST.replace("}", ', aifinops_cost_component=~"input|cache_read|cache_write"}') + "[$__rate_interval])) * 3600",
                "{{aifinops_cost_component}}"), _MONEY),
        )),
    ),
)  # fmt: skip

BOARDS = (SPEND, UNIT, BUDGETS, GPU, CACHE)

_VARIABLES = {
    "currency": ("Currency", "label_values(aifinops_cost_total, aifinops_cost_currency)"),
    "team": ("Team", "label_values(aifinops_cost_total, aifinops_team)"),
    "model": ("Model", "label_values(aifinops_cost_total, gen_ai_request_model)"),
    "provider": ("Provider", "label_values(aifinops_cost_total, gen_ai_provider_name)"),
    "budget": ("Budget", "label_values(aifinops_budget_limit, aifinops_budget_id)"),
}
_SOURCE = {"type": "prometheus", "uid": "${source}"}


def _variable(name: str) -> Any:
    from grafana_foundation_sdk.builders import dashboard
    from grafana_foundation_sdk.models import dashboard as models

    label, query = _VARIABLES[name]
    found = (
        dashboard.QueryVariable(name).label(label).query(query).datasource(models.DataSourceRef(type_val="prometheus", uid="${source}"))
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(models.VariableSort.ALPHABETICAL_ASC)
    )  # fmt: skip
    if name == "currency":  # one at a time: sums over currencies mean nothing
        return found.current(models.VariableOption(selected=True, text="USD", value="USD"))
    everything = models.VariableOption(selected=True, text=["All"], value=["$__all"])
    return found.multi(True).include_all(True).all_value(".*").current(everything)


def _panel(panel: Panel) -> Any:
    from grafana_foundation_sdk.builders import common, prometheus
    from grafana_foundation_sdk.builders import dashboard as builders
    from grafana_foundation_sdk.models import common as shapes
    from grafana_foundation_sdk.models import dashboard as models
    from grafana_foundation_sdk.models import prometheus as queries

    found = _make(panel.kind)
    found = found.title(panel.title).unit(panel.unit).span(panel.width).height(panel.height)
    found = found.datasource(models.DataSourceRef(type_val="prometheus", uid="${source}"))
    if panel.text:
        found = found.description(panel.text)
    if panel.decimals is not None:
        found = found.decimals(panel.decimals)
    if panel.warn:
        steps = [models.Threshold(value=level or None, color=colour) for level, colour in panel.warn]
        found = found.thresholds(builders.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps))
    for number, query in enumerate(panel.queries):
        target = (
            prometheus.Dataquery().expr(query.expr).ref_id(chr(65 + number)).legend_format(query.legend or "__auto")
        )
        target = target.instant() if query.instant else target.range()
        if panel.kind == "table":
            target = target.format(queries.PromQueryFormat.TABLE)
        found = found.with_target(target)
    if panel.kind in {"stat", "bars"}:
        found = found.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    if panel.kind in {"line", "stack"}:
        found = found.min(0).legend(common.VizLegendOptions().show_legend(True).placement(shapes.LegendPlacement.BOTTOM)
                                    .display_mode(shapes.LegendDisplayMode.LIST))  # fmt: skip
    if panel.kind == "stack":
        found = found.fill_opacity(40).stacking(common.StackingConfig().mode(shapes.StackingMode.NORMAL))
    return found


def _make(kind: str) -> Any:
    from grafana_foundation_sdk.builders import bargauge, stat, table, timeseries

    makers: dict[str, Callable[[], Any]] = {
        "stat": stat.Panel, "line": timeseries.Panel, "stack": timeseries.Panel, "bars": bargauge.Panel, "table": table.Panel,
    }  # fmt: skip
    return makers[kind]()


def make(board: Board) -> str:
    """The JSON of a dashboard."""
    from grafana_foundation_sdk.builders import dashboard
    from grafana_foundation_sdk.cog.encoder import JSONEncoder

    found = (
        dashboard.Dashboard(board.title).uid(f"aifinops-{board.name}").description(board.text).tags(["aifinops", "finops", "ai"])
        .refresh("1m").time("now-24h", "now").timezone("browser").editable()
        .with_variable(dashboard.DatasourceVariable("source").label("Data source").type("prometheus"))
    )  # fmt: skip
    for name in board.variables:
        found = found.with_variable(_variable(name))
    for title, panels in board.rows:
        found = found.with_row(dashboard.Row(title))
        for panel in panels:
            found = found.with_panel(_panel(panel))
    return JSONEncoder(sort_keys=True, indent=2).encode(found.build()) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 when a file is not what this makes"
    )
    check = parser.parse_args(arguments).check
    stale = []
    for board in BOARDS:
        path, text = FOLDER / f"{board.name}.json", make(board)
        json.loads(text)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(path.name)
            if not check:
                path.write_text(text, encoding="utf-8")
    print(f"{len(BOARDS)} dashboards, {', '.join(stale) or 'none'} {'stale' if check else 'written'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
