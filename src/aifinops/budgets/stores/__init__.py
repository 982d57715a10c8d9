"""Where balances live: one interface, and one module for each place."""
