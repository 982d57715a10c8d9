"""What the ledger's entries add up to. Reads ledgers and nothing else."""
