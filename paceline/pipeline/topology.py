"""What a topology says: groups, stages, edges, schedule, context and limits, as frozen models.

These are the shapes only. `load.py` reads YAML into them and keeps the line of every key; `validate.py` checks what a
single field can't know. Sizes are bytes, times are milliseconds.
"""

from __future__ import annotations

import ipaddress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from paceline.pipeline.frozen import LONGEST_MS, Frozen
from paceline.pipeline.sizes import parse_size
from paceline.pipeline.speculation.settings import LanguageSpec, SpeculationSpec
from paceline.pipeline.tiers import TierSpec

__all__ = [
    "CLEAN",
    "ContextMode",
    "ContextSpec",
    "CurveSpec",
    "EdgeSpec",
    "GroupSpec",
    "InjectSpec",
    "LatePolicy",
    "ModelSpec",
    "NetworkSpec",
    "Schedule",
    "StageKind",
    "StageSpec",
    "Topology",
    "Transport",
]

CLEAN = "clean"
"""The name of the pass at flow time 0 that writes a frame's final KV; it follows the last step."""

Size = Annotated[int, BeforeValidator(parse_size), Field(gt=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]


class Schedule(StrEnum):
    """Who computes when."""

    serial = "serial"
    wavefront = "wavefront"
    mirrored = "mirrored"
    batched = "batched"


class ContextMode(StrEnum):
    """Which KV of earlier frames a denoising step reads."""

    clean = "clean"
    cascade = "cascade"
    staggered = "staggered"
    matched = "matched"


class Transport(StrEnum):
    """How an edge between two ranks carries tensors. Between stages on one rank every edge is local."""

    local = "local"
    zmq = "zmq"
    dist = "dist"


class StageKind(StrEnum):
    """What a stage computes."""

    source = "source"
    denoise = "denoise"
    decode = "decode"
    sleep = "sleep"
    sink = "sink"
    draft = "draft"
    verify = "verify"


class LatePolicy(StrEnum):
    """What happens to a frame that misses its deadline."""

    wait = "wait"
    repeat = "repeat"
    fewer_steps = "fewer_steps"


class GroupSpec(Frozen):
    """A named set of ranks with one kind of device."""

    ranks: int = Field(1, ge=1, le=4096)
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$")
    threads: int = Field(1, ge=1, le=1024)
    """Intra-op threads of each rank (CPU)."""


class StageSpec(Frozen):
    """One unit of compute, placed on a group."""

    kind: StageKind
    group: str
    steps: tuple[int | Literal["clean"], ...] = ()
    """denoise: the steps it runs, e.g. `[1, clean]`."""
    ms: float = Field(0.0, ge=0, le=LONGEST_MS)
    """sleep: milliseconds an item takes; elsewhere: the cost of one pass that `paceline plan` assumes."""
    item_bytes: Size = 4096
    """source of a sleep workload: size of its items; sleep stages pass them on."""
    max_batch: int = Field(1, ge=1)
    """Items of different sessions it may compute in one forward; 1 keeps results bit-identical."""


class EdgeSpec(Frozen):
    """A bounded, ordered way from one stage to another. Limits hold for each session on the edge."""

    source: str = Field(alias="from")
    target: str = Field(alias="to")
    carries: Literal["item", "kv"] = "item"
    via: Transport = Transport.local
    inflight: int = Field(2, ge=1)
    """Most items sent and not yet taken."""
    bytes: Size = 64 * 2**20
    """Most bytes sent and not yet taken."""
    layers: int = Field(1, ge=1)
    """kv: layers that travel as one item where KV is streamed behind the compute; more means fewer messages."""


class ModelSpec(LanguageSpec):
    """The world model and how many denoising steps it takes; or the language models, target and drafter."""

    weights: str = "zoo:world"
    """`zoo:world` or the path of a .safetensors file."""
    steps: int = Field(2, ge=1, le=64)


class ContextSpec(Frozen):
    """Rolling KV: `sinks` first frames and the last `window` frames, read in one of four modes; and a few older ones
    that are recalled by pose."""

    mode: ContextMode = ContextMode.clean
    window: int = Field(8, ge=1, le=4096)
    sinks: int = Field(1, ge=0, le=4096)
    recall: int = Field(0, ge=0, le=64)
    """Older frames that are read beside these: those that show most of what they do not show of the view."""
    prompt: int = Field(4, ge=1, le=4096)
    """True frames that a session starts from."""


class InjectSpec(Frozen):
    """Faults put in on purpose: a random delay of up to `jitter_ms` before every unit and every send."""

    jitter_ms: float = Field(0.0, ge=0, le=LONGEST_MS)
    seed: int = 0


class CurveSpec(Frozen):
    """CURVE keys for tcp beyond loopback: this host's secret certificate and the folder of allowed public ones."""

    secret: Path
    allow: Path


class NetworkSpec(Frozen):
    """Where zmq sockets bind. Hosts beyond loopback need `curve`."""

    bind: str = "127.0.0.1"
    curve: CurveSpec | None = None
    max_message: Size = 256 * 2**20
    connect_timeout_s: float = Field(30.0, ge=1, le=LONGEST_MS // 1000)

    @property
    def loopback(self) -> bool:
        """Whether `bind` stays on this machine. Of interface names only `lo` does."""
        try:
            return self.bind in ("localhost", "lo") or ipaddress.ip_address(self.bind.strip("[]")).is_loopback
        except ValueError:
            return False


class Topology(Frozen):
    """The whole file."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$")
    workload: Literal["world", "sleep", "language"] = "world"
    seed: int = Field(0, ge=0, lt=2**63)
    deterministic: bool = True
    """Forbid what may change bits: joint forwards and batches of several sessions."""
    schedule: Schedule = Schedule.wavefront
    model: ModelSpec = ModelSpec()
    context: ContextSpec = ContextSpec()
    speculation: SpeculationSpec = SpeculationSpec()
    groups: dict[Name, GroupSpec] = Field(min_length=1, max_length=2048)
    stages: dict[Name, StageSpec] = Field(min_length=1, max_length=2048)
    edges: Annotated[tuple[EdgeSpec, ...], Field(max_length=8192)] = ()
    tiers: dict[Name, TierSpec] = Field({})
    """By group."""
    deadline_ms: float | None = Field(None, gt=0, le=LONGEST_MS)
    on_late: LatePolicy = LatePolicy.wait
    network: NetworkSpec = NetworkSpec()
    inject: InjectSpec = InjectSpec()

    @property
    def world_size(self) -> int:
        """Ranks over all groups."""
        return sum(group.ranks for group in self.groups.values())

    @property
    def last_level(self) -> int:
        """The level of a finished frame: the number of steps, which is also the index of the clean pass."""
        return self.model.steps

    @property
    def item_bytes(self) -> int:
        """Bytes of a sleep workload's items, which the source sets."""
        return next((stage.item_bytes for stage in self.stages.values() if stage.kind is StageKind.source), 0)

    def stage_steps(self, stage: str) -> tuple[int, ...]:
        """Step indices of a denoise stage in rising order, `clean` as the number of steps."""
        steps = self.stages[stage].steps
        return tuple(sorted(self.last_level if step == CLEAN else int(step) for step in steps))
