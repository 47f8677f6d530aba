"""How much an episode may use. Running out is an ending, not an exception."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Budget:
    """What is left of one episode.

    Args:
        turns: generations that may still call tools; the one after the last of them must answer.
        tokens: ids that a trajectory may have.
    """

    turns: int
    tokens: int

    @property
    def must_answer(self) -> bool:
        """Whether no tool may be called any more."""
        return self.turns <= 0

    def spend_turn(self) -> None:
        """Count one generation that was shown something in return."""
        self.turns -= 1

    def for_generation(self, used: int, most: int) -> int:
        """Return how many ids the next generation may draw; 0 when there is no room for any.

        Args:
            used: ids of the trajectory so far.
            most: of one generation.
        """
        return max(0, min(most, self.tokens - used))

    def holds(self, used: int) -> bool:
        """Whether a trajectory of so many ids leaves room to say at least one more."""
        return used < self.tokens
