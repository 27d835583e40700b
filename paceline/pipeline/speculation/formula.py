"""Expected speed over plain decoding, in closed form.

Units: the time of one plain pass is 1. A draft step takes c, a pass over a window `verify` (1 where a pass costs what
its weights cost), a round trip between drafter and verifier d. Acceptance is a at every position, independently; a
window has g tokens, A = a**g. A refill is found ready with chance h; R passes can be under way in the verifier.

* sequential (Leviathan et al. 2023):  S = (1 - a**(g+1)) / ((1 - a) (g c + verify + d))
* pipelined, with carry-over verdicts: S = [1/(1-a)] / [(1-h) g c + verify + d + a A/(1-A) T], T = max(verify/R, g c)

A cycle of the second goes from rejection to rejection and commits 1/(1-a) tokens. It waits for a refill (unless it is
ready), for its pass and its way, and then for one period T for each further window, A/(1-A) on average; the factor a is
what carry-over verdicts save: a window that fails at its first token is known to fail one pass earlier. With fewer
windows in flight than N* = ceil((g c + verify + d)/T) the period is (g c + verify + d)/N instead.

What the formula leaves out: a draft step under way is not interrupted, so a rollback waits for half a step on average
where the drafter is never idle; that is up to c/2 a cycle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Costs", "period", "pipelined", "sequential", "useful_depth"]


@dataclass(frozen=True, slots=True)
class Costs:
    """Times in units of one plain pass: a draft step, a pass over a window, a round trip; and the passes that can be
    under way at once. Raises `ValueError` for values that no machine has."""

    draft: float
    verify: float = 1.0
    round_trip: float = 0.0
    slots: int = 1

    def __post_init__(self) -> None:
        if not (self.draft >= 0 and self.verify > 0 and self.round_trip >= 0 and self.slots >= 1):
            raise ValueError(
                f"{self}: a pass has to take time, no cost may be negative, and there is at least one slot"
            )


def _checked(acceptance: Sequence[float], window: int) -> list[float]:
    """Acceptance by index in the window; the last one stands for all behind it."""
    if window < 1 or not acceptance or not all(0 <= a <= 1 for a in acceptance):
        raise ValueError(f"a window of {window} with acceptance {list(acceptance)}: at least 1, and shares of 1")
    return [acceptance[min(i, len(acceptance) - 1)] for i in range(window)]


def _reached(acceptance: Sequence[float]) -> list[float]:
    """The chance that index i of a window is accepted with all before it, for i = 0 to g - 1."""
    reached, p = [], 1.0
    for a in acceptance:
        p *= a
        reached.append(p)
    return reached


def sequential(acceptance: Sequence[float], window: int, costs: Costs) -> float:
    """Speed of drafting and verifying in turns, with a bonus token after full acceptance."""
    tokens = 1.0 + sum(_reached(_checked(acceptance, window)))
    return tokens / (window * costs.draft + costs.verify + costs.round_trip)


def period(window: int, costs: Costs, depth: int | None = None) -> float:
    """T: the time from one window to the next while all are accepted; `depth` None means as many as are of use."""
    free = max(costs.verify / costs.slots, window * costs.draft)
    if depth is None:
        return free
    return max(free, (window * costs.draft + costs.verify + costs.round_trip) / depth)


def pipelined(
    acceptance: Sequence[float], window: int, costs: Costs, hit: float = 0.0, depth: int | None = None
) -> float:
    """Speed with windows in flight; `hit` is the chance that a refill is ready. Written for acceptance by index: the
    tokens and windows of a cycle follow from those of one window."""
    by_index = _checked(acceptance, window)
    reached = _reached(by_index)
    whole = reached[-1]
    # Everything is multiplied by 1 - A, so that nothing divides by zero where all is accepted.
    tokens = sum(reached) + (1.0 - whole)
    refill = (1.0 - hit) * window * costs.draft + costs.verify + costs.round_trip
    # What fails at its first token, and is not the first window of its cycle, costs no period.
    periods = whole - whole * (1.0 - by_index[0])
    return tokens / ((1.0 - whole) * refill + periods * period(window, costs, depth))


def useful_depth(window: int, costs: Costs) -> int:
    """N*: windows in flight beyond this number only wait."""
    # Ratios such as 3 * 0.1 + 1 over 1.3 have to be whole in spite of rounding.
    return max(1, math.ceil((window * costs.draft + costs.verify + costs.round_trip) / period(window, costs) - 1e-9))
