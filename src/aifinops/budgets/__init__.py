"""Budgets: money or meters held back before a call and settled after it."""
