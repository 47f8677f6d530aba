"""A fictional web, served over real HTTP on loopback."""
