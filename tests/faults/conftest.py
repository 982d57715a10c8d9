"""The client libraries of the fault tests are made in one module beside them."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # tests are imported by their paths: a module beside them is not found
