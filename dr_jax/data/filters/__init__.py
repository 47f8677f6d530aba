"""What decides whether a question is asked: each filter says keep or drop, and why."""
