"""Search providers, how they take turns, and what that may cost."""
