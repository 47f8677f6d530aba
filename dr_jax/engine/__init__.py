"""Continuous batching over paged keys and values: the policy that runs here."""
