"""One seam for a family of client libraries."""
