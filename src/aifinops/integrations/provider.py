"""A provider as data: which path is which operation, and where an answer says what was used and what decides its price.

A row has no code. Where it names a place in an answer, it does so in the language of `aifinops.integrations.paths`.
`input_total` and `output_total` are inclusive counts, of which the meters of the same direction are parts; a provider that reports the
parts without a total names the meters only. `WHOLES` has the other inclusive counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["DEARER", "TOTALS", "WHOLES", "Parts", "Provider", "Route"]

TOTALS = {"input_total": "input_tokens", "output_total": "output_tokens"}
"""Inclusive count -> the meter that keeps what its parts leave over."""

WHOLES = {
    "cache_write_tokens": ("cache_write_tokens", ("cache_write_1h_tokens", "cache_write_30m_tokens", "cache_write_12h_tokens")),
    "cache_read_total": (
        "cache_read_tokens",
        ("cache_read_audio_tokens", "cache_read_image_tokens", "cache_read_video_tokens"),
    ),
    "input_audio_total": ("input_audio_tokens", ("cache_read_audio_tokens",)),
    "input_image_total": ("input_image_tokens", ("cache_read_image_tokens",)),
    "input_video_total": ("input_video_tokens", ("cache_read_video_tokens",)),
}  # fmt: skip
"""Inner inclusive count -> (the meter that keeps what its parts leave over, its parts)."""


DEARER: Mapping[str, Mapping[str, str]] = {"service_tier": {"priority": "priority", "fast": "priority"}}
"""OpenAI's dearer tiers, as asked for. For the cheaper ones the standard bound is sound, whatever is served."""


@dataclass(frozen=True, slots=True)
class Parts:
    """A list in an answer whose entries have usage of their own, perhaps of another model.

    Attributes:
        path: the list, or one object. usage: as in `Route`, from the entry. model: in the entry; the answer's own where it has none.
        model_in_body: where the answer names the model of all entries. kind: where an entry says what it is.
        inside: kinds whose entries are what the counts of the answer itself consist of; `*` for all. beside: kinds that are not in
            them. A kind that is neither is taken as beside, which is never too little, and noted on the cost.
        unbilled: a kind whose entries are not billed when they have no output and an entry of the kind `served` is there.
    """

    path: str
    usage: Mapping[str, str]
    model: str = "model"
    model_in_body: str = ""
    kind: str = "type"
    inside: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    unbilled: str = ""
    served: str = ""


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint, or one form of its answers.

    Attributes:
        operation: OpenTelemetry's `gen_ai.operation.name`.
        usage: meter, or name of an inclusive count -> where; what is absent was not reported. An answer without any has no usage.
        signs: by which a body is known without its path, all of them: `path`, `!path` (not there), `path=value,value`.
        tools: meters that are counted beside the usage, of an answer that has some. tools_of: beginning of the name of a model that
            answered -> its tools, in place of these. offered: the list of tools that the answer repeats
            from the request; when it is empty none were used, and nobody looks for them.
        parts: usage of several models in one answer.
        makers: True for answers in the form of whoever made the model, with the counts in headers beside it: Amazon's InvokeModel.
        event: where a stream's event keeps the body (`response` for the Responses API), empty for the event itself.
        merge: stream events that add to one another, and where each keeps its piece of the body; empty when the last one says all.
        running: True when every event of a stream repeats the usage so far, which is final only where `finish` stands.
        ended: `type` of the event that ends a stream, where no `[DONE]` does.
        text: paths of generated text, in bodies and stream events; counted when a stream ends without usage.
        named: request fields (plain paths) that name what is asked for where no `model` does, first one wins.
        limits: request fields (plain paths) that state the output limit, first one wins. loose: where in a request (below `request`) it
            says something by which more may be billed than the limit, as tools of the provider do, or thoughts that are beside it.
        choices: the field that multiplies it; `a|b` for answers that are written and those of them that are shown.
        thinking: request fields (plain paths) that say how many tokens of an answer may be thoughts that no event of a stream shows, 0 for
            none; first one wins. plain: beginnings of the names of models that think only where that says so.
        usage_option: `field.flag` of a request for a stream that makes it end with its usage, in an event that has no choices.
        unseen: beginnings of the names of models that think in billed tokens which no event of a stream shows.
        model, response_id, created, finish: in the body.
        tier, region: in the body; the first that is not empty. tiers, regions: provider's word -> ours, empty for the standard.
        options: option of the price -> where.
        reported: what the provider says it cost, USD.
        raw: the usage object. also: further paths to keep with it, of numbers only, never of what was said. known: numbers that need
            no meter (totals and the like).
        notes: where -> what to say on the cost when something is there.
        facts: fixed span attributes.
        asks: request field -> its word -> the tier that may be served then, where that is dearer than the standard one. place: request
            field that asks for a region. given: option of the price -> request field that says it where the answer does not.
        billed: meter -> request field that has all that is billed of it: a number, or a text whose characters count.
            usual: how many are made of it where the request does not say; else one. It is of one of the `choices` where a route has `made`.
        alone: True where what is `billed` is billed in no other way, whatever the model.
        per: how many of what stands there make one of a meter, where one that is begun counts whole. split: bytes of one of them from which
            on it may count as several, so that the count is a bound.
        hidden: True for requests with input that their fields do not show (a file): what the model can read is the bound.
        sound: the fewest bytes that a second of the sound in such a file takes; 0 for other files.
        most: model -> the most output tokens of one answer, where no field of the request limits it.
        otherwise: how an answer of the same endpoint is read that has no usage.
        later: words at `finish` that say that the usage is still to come: it is polled for. An empty one stands for nothing said there;
            a flag that is set says `true`.
        lines: of a batch, where it has its answers in itself. output: the file that has them. elsewhere: where it says that they are in
            a place of the user's own. traced: True for a stream that tells in its trace what each of several calls of models used. made: how much was made of what was asked for, where only that is billed.
    """

    operation: str
    usage: Mapping[str, str]
    signs: tuple[str, ...] = ()
    tools: Mapping[str, str] = field(default_factory=dict)
    offered: str = ""
    parts: tuple[Parts, ...] = ()
    tools_of: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    makers: bool = False
    event: str = ""
    merge: tuple[tuple[str, str], ...] = ()
    running: bool = False
    ended: str = ""
    text: tuple[str, ...] = ()
    named: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    loose: str = ""
    thinking: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    usage_option: str = ""
    unseen: tuple[str, ...] = ()
    choices: str = "n"
    model: str = "model"
    response_id: str = "id"
    created: str = "created"
    tier: str = "service_tier"
    tiers: Mapping[str, str] = field(default_factory=dict)
    region: str = ""
    regions: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    reported: str = ""
    finish: str = ""
    raw: str = "usage"
    also: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    asks: Mapping[str, Mapping[str, str]] = field(default_factory=lambda: DEARER)
    place: str = ""
    given: Mapping[str, str] = field(default_factory=dict)
    billed: Mapping[str, str] = field(default_factory=dict)
    usual: Mapping[str, int] = field(default_factory=dict)
    alone: bool = False
    per: Mapping[str, int] = field(default_factory=dict)
    split: int = 0
    hidden: bool = False
    sound: int = 0
    most: Mapping[str, int] = field(default_factory=dict)
    otherwise: Route | None = None
    later: tuple[str, ...] = ()
    lines: str = ""
    output: str = "output_file_id"
    elsewhere: str = ""
    made: str = ""
    traced: bool = False


@dataclass(frozen=True, slots=True)
class Provider:
    """One client library and what it reaches, or one way of answering.

    Attributes:
        name: the provider when the host is none of `hosts`. module: patched when this is imported.
        minimum: lowest version that is tested. seam: name of the module in `seams/`, or `module:Class` of one elsewhere; empty for
            answers that are only read.
        routes: request path -> route. A key that is no path (no leading slash) is a form of answers that no call has of its own.
            Where the library sends with httpx, a path is the end of a request's path, `*` in it the model's name,
            and `{id}` any one part.
        hosts: host, or `.suffix` of hosts -> provider name; one client library reaches many providers. Where it sends with httpx, a
            host may be followed by the first part of the path (`router.example/groq`).
        usage_hosts: hosts, or `.suffix` of hosts, that are known to take every route's `usage_option` and to send no usage without it.
        residency: host -> region that it keeps requests in, of which answers say nothing.
        package: what to install, for the error that says so.
        clients: part of the name of a client's class -> provider name; it is over `hosts`.
        prefix: what this library's own paths begin with, which `routes` leave out.
        polls: end of the path of a GET, `{}` for an id in it -> the route that reads the answer, and those of
            which one reads an answer in it, where it is a batch. results: the same for the answers of a batch, one
            a line, and the routes of which one reads a line. files: the same for files, of which some are the output of a batch.
        other: how answers of an endpoint that is not in `routes` are read, when they have a usage.
        senders: of a library that sends with httpx, what of it is about to send (`module:Class.method`) -> path from that object to the
            httpx client; `()` stands for what a function returns.
        connections: paths from a client object to its httpx clients, for metering that client alone.
        outermost: functions (`module:function`) of a library that makes errors of its own of every exception: a refused budget comes out
            of them as itself.
        copies: functions (`module:Class.method`) of a library that make another answer of httpx of the one that they are given.
        speaks: request path -> provider that is meant by it where the host says nothing; for libraries that speak to many.
    """

    name: str
    routes: Mapping[str, Route]
    module: str = ""
    package: str = ""
    minimum: str = ""
    seam: str = ""
    hosts: Mapping[str, str] = field(default_factory=dict)
    usage_hosts: tuple[str, ...] = ()
    residency: Mapping[str, str] = field(default_factory=dict)
    clients: Mapping[str, str] = field(default_factory=dict)
    prefix: str = ""
    polls: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    results: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    other: Route | None = None
    senders: Mapping[str, str] = field(default_factory=dict)
    connections: tuple[str, ...] = ()
    outermost: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()
    speaks: Mapping[str, str] = field(default_factory=dict)

    def provider_at(self, host: str) -> str:
        """The provider's OpenTelemetry name for a host."""
        found = self.hosts.get(host)
        if found is not None:
            return found
        return next((name for end, name in self.hosts.items() if end[0] == "." and host.endswith(end)), self.name)
