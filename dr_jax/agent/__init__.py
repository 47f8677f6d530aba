"""What the policy is told, what it may do, and what it still sees."""
