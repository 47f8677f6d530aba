"""What every test shares: eight CPU devices, strict promotion, quiet; a log that a command has not touched."""

import logging
import os

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile hundreds of small programs and run each a few times: compiling without optimisation is three times quicker.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("JAX_NUMPY_DTYPE_PROMOTION", "strict")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")


@pytest.fixture
def plain_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is logged reaches pytest, whatever a command did to the log before; what a command does in the test is undone.

    A fixture because pytest looks, before a test begins, at who passes on what is logged: later it would hear things twice.
    """
    for name, value in (("handlers", []), ("propagate", True)):
        monkeypatch.setattr(logging.getLogger("dr_jax"), name, value)
