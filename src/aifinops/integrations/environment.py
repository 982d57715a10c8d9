"""Every environment variable that is read, as a constant: the entry point of the group `opentelemetry_environment_variables`."""

from __future__ import annotations

from aifinops.config import OTHER_VARIABLES, SETTINGS

__all__ = [*sorted({row.env for row in SETTINGS if row.env} | set(OTHER_VARIABLES))]  # noqa: PLE0604 - all are texts

globals().update({name: name for name in __all__})
