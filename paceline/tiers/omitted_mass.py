"""How much attention mass was left out, as far as it was proven and measured."""

from __future__ import annotations

from dataclasses import dataclass

from paceline.tiers.attention import Attended

__all__ = ["OmittedMass"]


@dataclass(slots=True)
class OmittedMass:
    """Sums over calls of attention."""

    skipped: int = 0
    """Blocks that were not read."""
    measured: int = 0
    """Calls that measured what was left out."""
    largest: float = 0.0
    total: float = 0.0
    bound: float = 0.0

    def take(self, attended: Attended) -> None:
        """Count one call."""
        if attended.bound is not None:
            self.bound = max(self.bound, attended.bound)
        if attended.omitted is not None:
            self.measured += 1
            self.largest = max(self.largest, attended.omitted[0])
            self.total += attended.omitted[1]

    def statistics(self) -> dict[str, object]:
        """For the JSON of a run: shares of the attention mass of a head and row. `bound` is the largest that a call was
        allowed to leave out: proven for every head and row (certified), or expected on their mean (profiled)."""
        mean = self.total / self.measured if self.measured else 0.0
        return {
            "skipped": self.skipped,
            "omitted_mass": {"max": self.largest, "mean": mean},
            "omitted_bound": {"max": self.bound},
        }
