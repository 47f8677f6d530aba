"""Rollouts that outgrow the trainer's own devices: workers elsewhere that come and go."""
