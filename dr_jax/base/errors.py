"""The one tree of errors.

Everything raised on purpose derives from `DrJaxError`. `UserError` and what is below it are caused by input that a person
can change: the command line prints them as one paragraph and exits with code 2. Whatever else escapes is a bug.
"""

from __future__ import annotations


class DrJaxError(Exception):
    """Base of every error that dr_jax raises on purpose."""


class UserError(DrJaxError):
    """Input that a person can correct, told in three parts.

    Args:
        found: what was met, with the offending value.
        needed: what would have been accepted.
        fix: what to change, as an instruction.
    """

    def __init__(self, found: str, *, needed: str = "", fix: str = "") -> None:
        self.found, self.needed, self.fix = found, needed, fix
        parts = [found.rstrip("."), needed and f"Needed: {needed.rstrip('.')}", fix and f"Fix: {fix.rstrip('.')}"]
        super().__init__(". ".join(part for part in parts if part) + ".")


class ConfigError(UserError):
    """A setting is unknown, of the wrong type, out of range, or contradicts another."""


class DataError(UserError):
    """A question file cannot be used as it is."""


class CheckpointError(UserError):
    """A checkpoint or model directory is missing, corrupt, or of another architecture."""


class CapacityError(UserError):
    """A request can never fit: a prompt longer than the budget, a batch that the mesh cannot hold."""


class ContextFullError(CapacityError):
    """A prompt and its budget of new tokens are more than the context holds."""


class MismatchError(UserError):
    """The engine and the trainer disagree about log-probabilities by more than the gate allows."""


class BudgetError(UserError):
    """A budget of the run is used up; what would have passed it was not begun."""


class WorldDownError(DrJaxError):
    """The web could not be reached through no fault of the policy; the episode ends WORLD_FAILED."""


class DeadlineError(DrJaxError):
    """Something was given a deadline and passed it."""


class LostError(DrJaxError):
    """Another process of the same run is gone, or cannot be reached."""
