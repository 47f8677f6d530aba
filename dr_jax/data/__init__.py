"""Questions: their shape, where they come from, and the order in which a run draws them."""
