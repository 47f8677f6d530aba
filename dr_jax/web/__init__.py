"""The only way out: search, fetch, read, remember, and let nothing in."""
