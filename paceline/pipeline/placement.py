"""Which rank computes which stage of which session. Pure arithmetic on a valid topology."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from paceline.pipeline.flow import compute_chain
from paceline.pipeline.topology import FrameTopology, Schedule, Topology

__all__ = ["Placement", "Route", "memories"]


@dataclass(frozen=True, slots=True)
class Placement:
    """Ranks are numbered through the groups in their order in the file.

    A session stays on one rank of each group: session n on rank n modulo the group's ranks, or, where the schedule is
    mirrored, the pair n // 2. In the mirrored schedule odd sessions enter from the other end: the stage on the i-th of
    G compute groups moves to group G-1-i; source, decode and sink stay where they are (after DualPipe,
    https://github.com/deepseek-ai/DualPipe).
    """

    topology: Topology
    _first: dict[str, int] = field(init=False, repr=False, compare=False)
    _mirror: dict[str, str] = field(init=False, repr=False, compare=False)
    _names: tuple[str, ...] = field(init=False, repr=False, compare=False)
    _starts: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        first, rank = {}, 0
        for name, group in self.topology.groups.items():
            first[name] = rank
            rank += group.ranks
        chain = compute_chain(self.topology)
        groups = list(dict.fromkeys(self.topology.stages[stage].group for stage in chain))
        opposite = dict(zip(groups, reversed(groups), strict=True))
        object.__setattr__(self, "_first", first)
        object.__setattr__(self, "_names", tuple(first))
        object.__setattr__(self, "_starts", tuple(first.values()))
        object.__setattr__(self, "_mirror", {stage: opposite[self.topology.stages[stage].group] for stage in chain})

    @property
    def world_size(self) -> int:
        """Ranks over all groups."""
        return self.topology.world_size

    def ranks(self, group: str) -> range:
        """The ranks of a group."""
        return range(self._first[group], self._first[group] + self.topology.groups[group].ranks)

    def group_of_rank(self, rank: int) -> str:
        """The group that a rank belongs to. Raises `ValueError` for a rank beyond the world size."""
        if 0 <= rank < self.world_size:
            return self._names[bisect_right(self._starts, rank) - 1]
        raise ValueError(f"rank {rank} is not in 0..{self.world_size - 1}, the ranks of topology {self.topology.name}")

    def mirrored(self, session: int) -> bool:
        """Whether a session enters from the far end."""
        return self.topology.schedule == Schedule.mirrored and session % 2 == 1

    def group_of(self, stage: str, session: int) -> str:
        """The group that computes a stage for a session."""
        group = self.topology.stages[stage].group
        return self._mirror.get(stage, group) if self.mirrored(session) else group

    def rank_of(self, stage: str, session: int) -> int:
        """The rank that computes a stage for a session."""
        ranks = self.ranks(self.group_of(stage, session))
        lane = session // 2 if self.topology.schedule == Schedule.mirrored else session
        return ranks[lane % len(ranks)]

    def streams(self, rank: int, sessions: int) -> list[tuple[str, int]]:
        """`(stage, session)` of everything that a rank computes for sessions 0..sessions-1."""
        return [
            (stage, session)
            for session in range(sessions)
            for stage in self.topology.stages
            if self.rank_of(stage, session) == rank
        ]

    def all_streams(self, sessions: int) -> list[list[tuple[str, int]]]:
        """`streams` of every rank."""
        found: list[list[tuple[str, int]]] = [[] for _ in range(self.world_size)]
        for session in range(sessions):
            for stage in self.topology.stages:
                found[self.rank_of(stage, session)].append((stage, session))
        return found

    def routes(self, sessions: int) -> set[tuple[int, int, int]]:
        """`(edge index, source rank, target rank)` of every way that items of sessions 0..sessions-1 take."""
        return {
            (index, self.rank_of(edge.source, session), self.rank_of(edge.target, session))
            for index, edge in enumerate(self.topology.edges)
            for session in range(sessions)
        }


class Route(NamedTuple):
    """The index of an edge in the topology, and the ranks that it joins."""

    edge: int
    source: int
    target: int


def memories(topology: FrameTopology, streams: Iterable[tuple[str, int]]) -> int:
    """How many sessions have their context memory on a rank with these `(stage, session)`, where the topology has one:
    those whose first step is there."""
    if topology.context.memory is None:
        return 0
    return sum(0 in topology.stage_steps(stage) for stage, _ in streams)
