"""What every layer may use: axis letters, one error tree, settings, metrics, traces."""
