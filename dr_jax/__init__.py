"""dr_jax trains language models to do deep research: JAX on the device, the web on the host."""

__version__ = "0.1.0"
