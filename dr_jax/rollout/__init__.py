"""Episodes, groups of siblings, and the stream of finished ones."""
