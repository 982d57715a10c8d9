"""Spans and metrics: views of the ledger for the observability stack that a team already has."""
