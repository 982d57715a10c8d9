"""Tags and budgets reach threads: `ThreadPoolExecutor` by itself after `instrument()`, other threads through `af.bind`."""

import threading
from concurrent.futures import ThreadPoolExecutor

import openai

import aifinops as af
from aifinops.testing import FakeProvider

af.init(ledger="memory")
af.instrument("openai")

with FakeProvider() as server, openai.OpenAI(base_url=server.base_url, api_key="test") as client:

    def ask(number: int) -> None:
        messages = [{"role": "user", "content": f"Question {number}"}]
        client.chat.completions.create(model="gpt-4o-mini", messages=messages, max_completion_tokens=100)

    with af.budget("$1", name="batch") as budget, af.tags(team="search", feature="batch"):
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, range(40)))

        bound = threading.Thread(target=af.bind(ask), args=(40,))
        bound.start()
        bound.join()

    loose = threading.Thread(target=ask, args=(41,))  # outside of the block, and not bound: nobody's
    loose.start()
    loose.join()

report = af.report(by=["team"])
print(report)
print(f"\n{budget.spent} USD of the budget")

calls = {row.key["team"]: row.calls for row in report}
assert calls == {"search": 41, "": 1}
assert budget.spent == next(row.amount for row in report if row.key["team"] == "search")
af.shutdown()
