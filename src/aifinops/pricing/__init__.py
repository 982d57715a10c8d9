"""Prices: from usage to an exact, explained cost. Nothing is imported here; see `book`, `lists`, `prices`, `match`, `tokens`."""
