"""Many models, question sets and ways to attempt a question, in one table that can be gone on with."""
