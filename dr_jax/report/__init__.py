"""A run as one page that a person reads in a browser: curves, tables, settings, episodes."""
