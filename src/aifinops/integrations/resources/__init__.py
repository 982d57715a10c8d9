"""Other spend in the same tree: vector databases and storage, each a row of data over one seam of functions."""
