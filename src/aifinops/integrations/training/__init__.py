"""Training loops: hooks that torch publishes, and the callbacks of what stands above it. Steps and waiting for data, never a charge."""
