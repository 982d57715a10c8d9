"""Usage that was recorded elsewhere, read into the ledger: exports of providers, gateways and trace stores, span dumps, plain tables.

`import_files` reads them through the same prices as a metered call. Each form is a reader: a function from what a file holds to
`Record`s. Rows that cannot be read are told with their place and left out; what is in the ledger already is not written again.
"""

from __future__ import annotations

from aifinops.importing.loading import Outcome, import_files
from aifinops.importing.readers import FORMATS

__all__ = ["FORMATS", "Outcome", "import_files"]
