"""One module per side and benchmark; each runs in the environment of what it measures."""
