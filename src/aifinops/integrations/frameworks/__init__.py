"""Frameworks add tags, never charges: who called, and not what it cost. Each module says which published hook it uses."""
