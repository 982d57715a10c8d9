"""`aifinops demo`: a small support desk, run by three teams on the real openai client, metered by what this package offers.

Read it as an example. `Desk` is the application: ordinary calls of the SDK under `@track_cost`. `run` is the day at the desk.
The provider is a server on the loopback interface; nothing leaves this machine unless `--otlp` says so.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

import aifinops as af
from aifinops.cli import show
from aifinops.cli.stage import Open, Stage, farewell, tally
from aifinops.money import format_money

__all__ = ["Desk", "Stage", "run"]

HANDBOOK = " ".join(
    f"Rule {number}: be brief, be kind, and promise nothing that case {number} forbids." for number in range(60)
)
QUESTIONS = (
    "Where is my parcel? It was due on Monday.",
    "I was charged twice for the same order, please give one back.",
    "Can I change the address of an order that has been shipped?",
    "The refund you promised has not arrived.",
    "Do you deliver to islands?",
    "My invoice has the wrong company name.",
)
ARTICLES = tuple(f"Help article {number}: what to do when {question}" for number, question in enumerate(QUESTIONS))

LOOKUP: Any = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look something up in the archive of tickets.",
        "parameters": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
    },
}


class Ticket(BaseModel):
    """What triage makes of a question."""

    topic: str
    urgent: bool
    language: str


def long(tokens: int) -> dict[str, Any]:
    """How long the fake provider's answer is; a real one decides for itself."""
    return {"extra_headers": {"x-fake-output-tokens": str(tokens)}}


class Desk:
    """The application.

    Args:
        client: an `openai.OpenAI`.
    """

    def __init__(self, client: Any) -> None:
        self.client = client

    @af.track_cost(team="support", feature="triage")
    def triage(self, question: str) -> Ticket:
        """Structured output of a small model."""
        messages = [{"role": "user", "content": f"Sort this question: {question}"}]
        answer = self.client.chat.completions.parse(model="gpt-4o-mini", messages=messages, response_format=Ticket)
        ticket: Ticket = answer.choices[0].message.parsed
        return ticket

    @af.track_cost(team="support", feature="answer")
    def answer(self, question: str) -> Iterator[str]:
        """A stream; the handbook comes first in each prompt, so that the provider reads it from its cache."""
        messages = [{"role": "system", "content": HANDBOOK}, {"role": "user", "content": question}]
        options = {"include_usage": True}
        stream = self.client.chat.completions.create(
            model="gpt-4o", messages=messages, stream=True, stream_options=options, **long(240)
        )
        for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                yield chunk.choices[0].delta.content

    @af.track_cost(team="search", feature="index")
    def index(self, articles: tuple[str, ...]) -> int:
        """Embeddings."""
        answer = self.client.embeddings.create(model="text-embedding-3-small", input=list(articles), dimensions=64)
        return len(answer.data)

    @af.track_cost(team="search", feature="rerank")
    def rerank(self, question: str) -> str:
        """The responses API, and a model that thinks before it answers."""
        answer = self.client.responses.create(
            model="gpt-5-mini", instructions=HANDBOOK, input=f"Which article answers: {question}", **long(320)
        )
        return str(answer.output_text)

    @af.track_cost(team="research", feature="agent")
    def investigate(self, question: str) -> None:
        """An agent that never thinks it knows enough. It ends because its money does."""
        messages: list[Any] = [{"role": "user", "content": question}]
        while True:
            answer = self.client.chat.completions.create(
                model="gpt-5", messages=messages, tools=[LOOKUP], max_completion_tokens=1200, **long(900)
            )
            message = answer.choices[0].message
            messages.append(message.to_dict())
            for call in message.tool_calls or ():
                query = json.loads(call.function.arguments)["query"]
                messages.append({"role": "tool", "tool_call_id": call.id, "content": f"40 tickets mention {query}."})
            messages.append({"role": "user", "content": "Are you sure? Look again."})

    @af.track_cost(team="research", feature="house-model")
    def ask_house_model(self, question: str) -> str:
        """A model that no price list knows: its cost is unknown, which is not the same as nothing."""
        messages = [{"role": "user", "content": question}]
        answer = self.client.chat.completions.create(model="desk-house-7b", messages=messages, **long(180))
        return str(answer.choices[0].message.content)


@af.track_cost(team="research", feature="fine-tune", gpu="auto")
def fine_tune(steps: int = 200) -> float:
    """A short training loop; the seconds of the GPUs, or of the processors where there are none, are the team's beside its calls."""
    import torch

    torch.manual_seed(0)
    inputs = torch.randn(256, 16)
    targets = inputs.sum(dim=1, keepdim=True)
    model = torch.nn.Linear(16, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    loss = torch.nn.functional.mse_loss(model(inputs), targets)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        optimizer.step()
    return float(loss.detach())


@dataclass(frozen=True, slots=True)
class Step:
    """One act of the day: what is told while it runs, and what it does, which may return a sentence for the audience."""

    told: str
    act: Callable[[], str | None]


def day(desk: Desk, play: Open) -> list[Step]:
    """What happens, in order."""
    return [
        Step("search: index the help articles", lambda: _indexed(desk)),
        Step("support: sort the questions", lambda: _all(desk.triage)),
        Step("support: answer them, streamed", lambda: _all(lambda question: "".join(desk.answer(question)))),
        Step("support: one more, while the provider is overloaded", lambda: _overloaded(desk, play)),
        Step("search: find the articles", lambda: _all(desk.rerank)),
        Step("research: a model without a price", lambda: _all(desk.ask_house_model)),
        Step("research: an agent with a budget of $0.05", lambda: _capped_agent(desk)),
        Step("research: a short training loop", _trained),
    ]


def _all(act: Callable[[str], object]) -> None:
    for question in QUESTIONS:
        act(question)


def _indexed(desk: Desk) -> None:
    for _ in range(3):
        desk.index(ARTICLES)


def _overloaded(desk: Desk, play: Open) -> str:
    play.server.fail_next(429, message="Too many requests.")
    "".join(desk.answer("Are you there?"))
    return "The provider refused once, the SDK tried again: two requests, one charge."


def _capped_agent(desk: Desk) -> str:
    with af.budget("$0.05", per="run", name="agent") as budget:
        try:
            desk.investigate("Why do parcels get lost?")
        except af.BudgetExceeded as stop:
            spent, asked = format_money(budget.spent), format_money(stop.asked)
            return (
                f"The agent was stopped at {spent} of $0.05: its next call could have cost {asked}, and was not sent."
            )
    raise AssertionError("the agent ended by itself, which it never does")


def _trained() -> str:
    if importlib.util.find_spec("torch") is None:
        return "Left out: torch is not installed."
    return f"Trained to a loss of {fine_tune():.4f}."


def run(stage: Stage) -> bool:
    """Play the demo; True when the provider's bill and the ledger agree.

    Raises:
        ConfigurationError: see `Stage.open`.
    """
    out = stage.out
    with stage.open() as play:
        out.print("A support desk, three teams, one provider on 127.0.0.1. Nothing leaves this machine.", style="dim")
        columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn())
        with Progress(*columns, console=out, transient=True) as progress:
            steps = day(Desk(play.client), play)
            bar = progress.add_task("", total=len(steps))
            for step in steps:
                progress.update(bar, description=step.told)
                said = step.act()
                out.print(f"[green]{'✓' if show.can_draw(out) else '+'}[/] {step.told}")
                if said:
                    out.print(f"  {said}")
                progress.advance(bar)
        out.print()
        show.report(play.report("team", "feature"), out, "Spend by team and feature")
        out.print()
        show.report(play.report("model"), out, "Spend by model")
        out.print()
        agreed = tally(play)
        farewell(play)
    return agreed
