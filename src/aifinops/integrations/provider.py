"""A provider as data: which path is which operation, and where an answer says what was used.

A row has no code. Paths are dotted names into a JSON body or an SDK object; a list on the way is walked through. `input_total` and
`output_total` are inclusive counts, of which the meters of the same direction are parts; a provider that reports the parts without
a total names the meters only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["TOTALS", "Provider", "Route"]

TOTALS = {"input_total": "input_tokens", "output_total": "output_tokens"}
"""Inclusive count -> the meter that keeps what its parts leave over."""


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint.

    Attributes:
        operation: OpenTelemetry's `gen_ai.operation.name`.
        usage: meter, `input_total` or `output_total` -> path; what is absent was not reported.
        kind: value of the body's `object` field, by which a body is recognised without its path.
        event: where a stream's event keeps the body (`response` for the Responses API), empty for the event itself.
        text: paths of generated text, in bodies and stream events; counted when a stream ends without usage.
        limits: request fields that state the output limit, first one wins. choices: the field that multiplies it.
        model, response_id, tier, finish: paths in the body. facts: fixed span attributes.
    """

    operation: str
    usage: Mapping[str, str]
    kind: str
    event: str = ""
    text: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    choices: str = "n"
    model: str = "model"
    response_id: str = "id"
    tier: str = "service_tier"
    finish: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Provider:
    """One client library and what it reaches.

    Attributes:
        name: the provider when the host is none of `hosts`. module: patched when this is imported.
        minimum: lowest version that is tested. seam: name of the module in `seams/`.
        routes: request path -> route.
        hosts: host, or `.suffix` of hosts -> provider name; one client library reaches many providers.
        package: what to install, for the error that says so.
    """

    name: str
    module: str
    package: str
    minimum: str
    seam: str
    routes: Mapping[str, Route]
    hosts: Mapping[str, str] = field(default_factory=dict)

    def provider_at(self, host: str) -> str:
        """The provider's OpenTelemetry name for a host."""
        found = self.hosts.get(host)
        if found is not None:
            return found
        return next((name for end, name in self.hosts.items() if end[0] == "." and host.endswith(end)), self.name)
