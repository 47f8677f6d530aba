"""Which array lives on which device, and what several hosts must agree on."""
