"""The exact optimum of small instances, as a flow: it checks the oracle, Belady's rule and the planner.

Which blocks lie in a tier over time, under a limit of slots and of promotions a step, is a flow of slots through a
net: a slot goes from gap to gap (the time between two steps), inside a block or in the pool of idle slots. The flow of
maximal gain is integral, so it is the optimum over all policies, whatever they know. It takes time in the product of
slots and edges, and more: it is for hundreds of nodes.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from paceline.tiers.block_stats import Floats

__all__ = ["optimum"]

_ROUND = 1e-12


def optimum(
    gain: Floats, free: NDArray[np.bool_], slots: int, bandwidth: int | None = None, cost: float = 0.0
) -> float:
    """The most that a tier with `slots` slots can gain.

    `gain` `[n, T]`: what block b is worth in the tier in gap t, which ends with the lookups of step t + 1; at least 0.
    `free` `[n, T]`: whether it may begin to lie in the tier in that gap for nothing (it was made then, say); otherwise
    that is one promotion, of which `bandwidth` fit between two gaps and each costs `cost`.

    Raises `ValueError` for negative gains.
    """
    n, gaps = gain.shape
    if gain.size and gain.min() < 0:
        raise ValueError("a gain is negative; a slot may just as well be idle")
    net = _Net()
    pools = [net.node() for _ in range(gaps + 1)]
    doors = [net.node() for _ in range(gaps)]
    inside = [[(net.node(), net.node()) for _ in range(gaps)] for _ in range(n)]
    for gap in range(gaps):
        net.edge(pools[gap], pools[gap + 1], slots, 0.0)
        net.edge(pools[gap], doors[gap], slots if bandwidth is None else bandwidth, cost)
        for block in range(n):
            enter, leave = inside[block][gap]
            net.edge(enter, leave, 1, -float(gain[block, gap]))
            net.edge(pools[gap] if free[block, gap] else doors[gap], enter, 1, 0.0)
            net.edge(leave, pools[gap + 1], 1, 0.0)
            if gap + 1 < gaps:
                net.edge(leave, inside[block][gap + 1][0], 1, 0.0)
    return -net.cheapest(pools[0], pools[-1], slots)


class _Net:
    """A flow network; edge e and its reverse e ^ 1 lie side by side."""

    def __init__(self) -> None:
        self._out: list[list[int]] = []
        self._to: list[int] = []
        self._room: list[int] = []
        self._cost: list[float] = []

    def node(self) -> int:
        self._out.append([])
        return len(self._out) - 1

    def edge(self, source: int, target: int, room: int, cost: float) -> None:
        for a, b, most, price in ((source, target, room, cost), (target, source, 0, -cost)):
            self._out[a].append(len(self._to))
            self._to.append(b)
            self._room.append(most)
            self._cost.append(price)

    def cheapest(self, source: int, sink: int, units: int) -> float:
        """Send so many units, one by one along the cheapest path that is left (successive shortest paths; Ahuja,
        Magnanti and Orlin, Network Flows, 1993)."""
        total = 0.0
        for _ in range(units):
            price, way = self._path(source)
            if price[sink] >= 0:  # no more is to be gained: the remaining slots stay idle
                break
            total += price[sink]
            node = sink
            while node != source:
                edge = way[node]
                self._room[edge] -= 1
                self._room[edge ^ 1] += 1
                node = self._to[edge ^ 1]
        return total

    def _path(self, source: int) -> tuple[list[float], list[int]]:
        """Bellman and Ford, with a queue: costs are negative, but no cycle is."""
        price = [np.inf] * len(self._out)
        way = [-1] * len(self._out)
        price[source] = 0.0
        waiting, queued = deque([source]), [False] * len(self._out)
        while waiting:
            node = waiting.popleft()
            queued[node] = False
            for edge in self._out[node]:
                target = self._to[edge]
                reached = price[node] + self._cost[edge]
                if self._room[edge] and reached < price[target] - _ROUND:
                    price[target], way[target] = reached, edge
                    if not queued[target]:
                        queued[target] = True
                        waiting.append(target)
        return price, way
