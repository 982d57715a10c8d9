"""The edges: other people's code. Nothing here is imported before somebody asks for it."""

from __future__ import annotations

from aifinops.integrations.registry import instrument, state, uninstrument
from aifinops.integrations.responses import price_response

__all__ = ["instrument", "price_response", "state", "uninstrument"]
