"""One declarative file a provider."""
