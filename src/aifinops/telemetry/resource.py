"""Attribution from the OpenTelemetry resource, where it is asked for. We only read it: what a process is called is its own to say."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from aifinops.tags import EMPTY, Tags, make_tags

__all__ = ["ResourceTags"]

_SHORT = {"deployment.environment.name": "environment", "deployment.environment": "environment"}
"""Attributes that a tag of ours has another name for."""
_MOST = 256


class ResourceTags:
    """Tags from some attributes of the resource of the tracer provider in force; without one, of the standard variables.

    Args:
        wanted: names of attributes (`service.name`, `k8s.namespace.name`), each a tag of the same name.
        environ: the environment.
    """

    def __init__(self, wanted: Sequence[str], environ: Mapping[str, str] = os.environ) -> None:
        self._wanted = tuple(wanted)
        self._environ = environ
        self._provider: Any = self  # nobody's
        self._tags: Tags = EMPTY

    def tags(self) -> Tags:
        """The tags; looked up again when another provider was set."""
        module = sys.modules.get("opentelemetry.trace")
        provider = None if module is None else module.get_tracer_provider()
        if provider is not self._provider:
            resource = getattr(provider, "resource", None)
            said = getattr(resource, "attributes", None) or _from_environ(self._environ)
            self._tags, self._provider = self._read(said), provider
        return self._tags

    def _read(self, said: Mapping[str, Any]) -> Tags:
        found = {_SHORT.get(name, name): str(said[name])[:_MOST] for name in self._wanted if name in said}
        # That is what the SDK says of a process whose name nobody has told it.
        return make_tags({name: value for name, value in found.items() if not value.startswith("unknown_service")})


def _from_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """As https://opentelemetry.io/docs/specs/otel/resource/sdk/#specifying-resource-information-via-an-environment-variable says."""
    pairs = (part.partition("=")[::2] for part in environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","))
    found = {name.strip(): unquote(value.strip()) for name, value in pairs if name.strip()}
    service = environ.get("OTEL_SERVICE_NAME")
    return {**found, "service.name": service} if service else found
