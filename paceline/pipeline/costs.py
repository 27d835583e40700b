"""What things cost: seconds of a unit, of a message and of a link. Given in the topology or measured by a run.

Times are seconds here; topologies and summaries give milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from paceline.pipeline.program import Unit, UnitKind
from paceline.pipeline.topology import FrameTopology, Transport

__all__ = ["DEFAULT_LINKS", "Costs", "Link", "costs_from"]


@dataclass(frozen=True, slots=True)
class Link:
    """A directed way between two ranks: `latency_s` for the first byte, then `bytes_per_s`; one message at a time."""

    latency_s: float = 0.0
    bytes_per_s: float = float("inf")

    def seconds(self, nbytes: int) -> float:
        """Time for which a message occupies the link."""
        return nbytes / self.bytes_per_s


DEFAULT_LINKS: Mapping[Transport, Link] = {
    Transport.local: Link(),
    Transport.zmq: Link(100e-6, 1.2e9),
    Transport.dist: Link(250e-6, 1.5e9),
}
"""What two processes of one two-core machine reach: half of the round trips in notes/feasibility.md (ZMQ ipc and gloo,
4 bytes to 4 MiB). Fast links, such as NCCL over NVLink, are given or measured."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of everything that takes time."""

    pass_s: Mapping[str, float]
    """By stage: one pass (denoise) or one item (all others)."""
    links: Mapping[Transport, Link] = field(default_factory=lambda: DEFAULT_LINKS)
    unit_s: float = 0.0
    """Overhead of every unit on its rank."""
    message_s: float = 0.0
    """Work of the sender's rank, and again of the receiver's, for a message between two ranks."""
    row_share: float = 1.0
    """Cost of each further row of a joint forward, as a share of the first one: 1 where compute is the limit."""

    def seconds(self, units: Sequence[Unit], layers: int) -> float:
        """Time to run units together (one, or equal ones of several sessions), without their messages."""
        unit = units[0]
        cost = self.pass_s.get(unit.stage, 0.0)
        if unit.kind in (UnitKind.receive, UnitKind.drain, UnitKind.discard):
            return self.unit_s
        if unit.kind is UnitKind.layers:
            start, stop = unit.layers
            rows = sum(len(other.rows) for other in units)
            return self.unit_s + cost * (stop - start) / layers * (1 + (rows - 1) * self.row_share)
        return self.unit_s + cost * len(units)

    def link(self, transport: Transport, same_rank: bool) -> Link:
        """The link of an edge; between stages on one rank every edge is local."""
        return self.links.get(Transport.local if same_rank else transport, Link())


def costs_from(topology: FrameTopology, measured: Mapping[str, object] | None = None) -> Costs:
    """Costs as the topology gives them (`ms` of its stages) or, where `measured` is the summary of a run, from its
    `stage_ms`: milliseconds of one pass or item by stage.

    Stages that were not measured keep the `ms` of the topology. Raises `ValueError` where `measured` has no usable
    `stage_ms`.
    """
    pass_s = {name: stage.ms / 1000 for name, stage in topology.stages.items()}
    if measured is not None:
        stage_ms = measured.get("stage_ms")
        if not isinstance(stage_ms, Mapping):
            raise ValueError("the measured costs have no 'stage_ms'; give the summary.json of a run (--out DIR)")
        for name, value in stage_ms.items():
            if name not in pass_s:
                raise ValueError(
                    f"measured stage {name!r} is not in topology {topology.name}; it has {', '.join(pass_s)}"
                )
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise ValueError(f"stage_ms of {name} is {value!r}; it must be milliseconds, 0 or more")
            pass_s[name] = value / 1000
    return Costs(pass_s)
