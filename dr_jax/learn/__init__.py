"""From finished groups to new weights."""
