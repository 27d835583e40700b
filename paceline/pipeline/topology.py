"""What a topology says: groups, stages, edges, schedule, context and limits, as frozen models.

`Topology` is a union with a model for each workload; the key `workload` says which one a file is.

These are the shapes only. `load.py` reads YAML into them and keeps the line of every key; `validate.py` checks what a
single field can't know. Sizes are bytes, times are milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field

from paceline import versions
from paceline.pipeline.network import NetworkSpec
from paceline.pipeline.speculation.settings import LanguageSpec, SpeculationSpec
from paceline.pipeline.speculation.window import Coupling
from paceline.pipeline.stage import (
    CLEAN,
    SLEEP_STAGES,
    WORLD_STAGES,
    PayloadStageSpec,
    SleepStage,
    StageBase,
    StageKind,
    StageSpec,
    WorldStage,
)
from paceline.pipeline.strict_model import LONGEST_MS, Size, StrictModel
from paceline.pipeline.tiers import TierSpec

__all__ = [
    "MODELS",
    "ContextMode",
    "ContextSpec",
    "EdgeBase",
    "EdgeSpec",
    "FrameTopology",
    "GroupSpec",
    "InjectSpec",
    "LanguageTopology",
    "LatePolicy",
    "ModelSpec",
    "Schedule",
    "SleepTopology",
    "Topology",
    "TopologyBase",
    "Transport",
    "WorldEdgeSpec",
    "WorldTopology",
    "topology_model",
]

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


class LatePolicy(StrEnum):
    """What happens to a frame that misses its deadline."""

    wait = "wait"
    repeat = "repeat"
    fewer_steps = "fewer_steps"


class GroupSpec(StrictModel):
    """A named set of ranks with one kind of device."""

    ranks: int = Field(1, ge=1, le=4096)
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$")
    threads: int = Field(1, ge=1, le=1024)
    """Intra-op threads of each rank (CPU)."""


class EdgeBase(StrictModel):
    """A bounded, ordered way from one stage to another. Limits hold for each session on the edge."""

    source: str = Field(alias="from")
    target: str = Field(alias="to")
    via: Transport = Transport.local
    inflight: int = Field(2, ge=1)
    """Most items sent and not yet taken."""
    bytes: Size = 64 * 2**20
    """Most bytes sent and not yet taken."""

    if TYPE_CHECKING:
        # Every edge has them: those of a world as keys, others as constants.
        @property
        def carries(self) -> Literal["item", "kv", "latent"]: ...
        @property
        def layers(self) -> int: ...


class EdgeSpec(EdgeBase):
    """An edge of a workload without KV on edges."""

    carries: ClassVar[Literal["item", "kv", "latent"]] = "item"
    layers: ClassVar[int] = 1


class WorldEdgeSpec(EdgeBase):
    """An edge of a world."""

    carries: Literal["item", "kv", "latent"] = "item"
    """`kv` and `latent` lead between denoise stages; `latent` takes finished latents to the context memory."""
    layers: int = Field(1, ge=1)
    """kv: layers that travel as one item where KV is streamed behind the compute; more means fewer messages."""


class ModelSpec(StrictModel):
    """The world model and how many denoising steps it takes."""

    weights: str = "zoo:world"
    """`zoo:world` or the path of a .safetensors file."""
    steps: int = Field(2, ge=1, le=64)


class MemorySpec(StrictModel):
    """A context memory: a state of constant size that holds the frames behind the window."""

    kind: str = Field(min_length=1)
    """The name of a memory (`paceline.stages.memory`)."""
    options: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Options of the memory, by name."""


class ContextSpec(StrictModel):
    """Rolling KV: `sinks` first frames and the last `window` frames, read in one of four modes; and a few older ones
    that are recalled by pose."""

    mode: ContextMode = ContextMode.clean
    window: int = Field(8, ge=1, le=4096)
    sinks: int = Field(1, ge=0, le=4096)
    recall: int = Field(0, ge=0, le=64)
    """Older frames that are read beside these: those that show most of what they do not show of the view."""
    prompt: int = Field(4, ge=1, le=4096)
    """True frames that a session starts from."""
    memory: MemorySpec | None = None
    """Read once a frame, beside sinks, window and recalled frames."""


class InjectSpec(StrictModel):
    """Faults put in on purpose: a random delay of up to `jitter_ms` before every unit and every send."""

    jitter_ms: float = Field(0.0, ge=0, le=LONGEST_MS)
    seed: int = 0


class TopologyBase(StrictModel):
    """The keys that every workload takes."""

    version: int = Field(versions.TOPOLOGY, ge=versions.TOPOLOGY, le=versions.TOPOLOGY)
    """Of the meaning of the keys; a file without it is of version 1."""
    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$")
    workload: Literal["world", "sleep", "language"]
    seed: int = Field(0, ge=0, lt=2**63)
    deterministic: bool = True
    """Forbid what may change bits: joint forwards and batches of several sessions."""
    groups: dict[Name, GroupSpec] = Field(min_length=1, max_length=2048)
    stages: Mapping[Name, StageBase]
    edges: tuple[EdgeBase, ...] = ()
    tiers: dict[Name, TierSpec] = Field({})
    """By group."""
    network: NetworkSpec = NetworkSpec()
    inject: InjectSpec = InjectSpec()

    stage_kinds: ClassVar[tuple[StageKind, ...]]
    """The kinds of stages that the workload has, each exactly once but for `compute_kind`."""
    compute_kind: ClassVar[StageKind | None] = None
    """The kind of which there may be several stages, which make a frame one after the other."""
    kv_kinds: ClassVar[tuple[StageKind, ...]] = ()
    """The kinds of stages that hold KV."""
    own_stages: ClassVar[Mapping[StageKind, type[StageBase]]] = {}
    """The models of the kinds of stages that take keys of their own."""

    def stage_of(self, kind: StageKind) -> str:
        """The name of the stage of a kind of which there is one."""
        return next(name for name, stage in self.stages.items() if stage.kind is kind)

    @property
    def world_size(self) -> int:
        """Ranks over all groups."""
        return sum(group.ranks for group in self.groups.values())

    @property
    def output_kv_kinds(self) -> tuple[StageKind, ...]:
        """The kinds of stages whose KV decides what comes out."""
        return self.kv_kinds


class FrameTopologyBase(TopologyBase):
    """The keys that workloads take which make frames, or items in place of them."""

    schedule: Schedule = Schedule.wavefront
    deadline_ms: float | None = Field(None, gt=0, le=LONGEST_MS)
    on_late: LatePolicy = LatePolicy.wait


class WorldTopology(FrameTopologyBase):
    """Frames of a world model."""

    workload: Literal["world"] = "world"
    stages: dict[Name, WorldStage] = Field(min_length=1, max_length=2048)
    edges: Annotated[tuple[WorldEdgeSpec, ...], Field(max_length=8192)] = ()
    model: ModelSpec = ModelSpec()
    context: ContextSpec = ContextSpec()

    stage_kinds: ClassVar[tuple[StageKind, ...]] = (
        StageKind.source,
        StageKind.denoise,
        StageKind.decode,
        StageKind.sink,
    )
    compute_kind: ClassVar[StageKind] = StageKind.denoise
    kv_kinds: ClassVar[tuple[StageKind, ...]] = (StageKind.denoise,)
    own_stages: ClassVar[Mapping[StageKind, type[StageBase]]] = WORLD_STAGES
    modes: ClassVar[tuple[ContextMode, ...]] = tuple(ContextMode)
    """The context modes that the stages could run in."""
    reads_context: ClassVar[bool] = True
    """Whether passes read KV of earlier frames."""
    item_bytes: ClassVar[int] = 0
    """Bytes of what the source sends for each frame; an action is a few numbers."""

    @property
    def steps(self) -> int:
        """Denoising steps of a frame."""
        return self.model.steps

    @property
    def last_level(self) -> int:
        """The level of a finished frame: the number of steps, which is also the index of the clean pass."""
        return self.model.steps

    @property
    def prompt_frames(self) -> int:
        """Frames at the start of a session that are given and not computed."""
        return self.context.prompt

    def stage_steps(self, stage: str) -> tuple[int, ...]:
        """Step indices of a denoise stage in rising order, `clean` as the number of steps."""
        steps = self.stages[stage].steps
        return tuple(sorted(self.last_level if step == CLEAN else int(step) for step in steps))

    def with_context(self, context: ContextSpec) -> Self:
        """The same topology with another context."""
        return self.model_copy(update={"context": context})


class SleepTopology(FrameTopologyBase):
    """Items that pass through stages that only wait. They are numbered as frames of a world with default settings are,
    and read nothing of one another."""

    workload: Literal["sleep"] = "sleep"
    stages: dict[Name, SleepStage] = Field(min_length=1, max_length=2048)
    edges: Annotated[tuple[EdgeSpec, ...], Field(max_length=8192)] = ()

    stage_kinds: ClassVar[tuple[StageKind, ...]] = (StageKind.source, StageKind.sleep, StageKind.sink)
    compute_kind: ClassVar[StageKind] = StageKind.sleep
    own_stages: ClassVar[Mapping[StageKind, type[StageBase]]] = SLEEP_STAGES
    context: ClassVar[ContextSpec] = ContextSpec()
    modes: ClassVar[tuple[ContextMode, ...]] = (context.mode,)
    reads_context: ClassVar[bool] = False
    steps: ClassVar[int] = ModelSpec().steps
    last_level: ClassVar[int] = steps
    prompt_frames: ClassVar[int] = 0

    @property
    def item_bytes(self) -> int:
        """Bytes of an item, which the source sets."""
        return next((stage.item_bytes for stage in self.stages.values() if isinstance(stage, PayloadStageSpec)), 0)

    def stage_steps(self, stage: str) -> tuple[int, ...]:
        """None: no stage denoises."""
        return ()

    def with_context(self, context: ContextSpec) -> Self:
        """This topology: nothing reads a context."""
        return self


class LanguageTopology(TopologyBase):
    """Text of a language model that decodes with drafts in flight."""

    workload: Literal["language"] = "language"
    stages: dict[Name, StageSpec] = Field(min_length=1, max_length=2048)
    edges: Annotated[tuple[EdgeSpec, ...], Field(max_length=8192)] = ()
    model: LanguageSpec = LanguageSpec()
    speculation: SpeculationSpec = SpeculationSpec()

    stage_kinds: ClassVar[tuple[StageKind, ...]] = (StageKind.draft, StageKind.verify)
    kv_kinds: ClassVar[tuple[StageKind, ...]] = stage_kinds
    schedule: ClassVar[Schedule] = Schedule.wavefront
    """What is ready runs; `Placement` asks for it."""
    last_level: ClassVar[int] = 0
    """Positions have no steps."""

    @property
    def output_kv_kinds(self) -> tuple[StageKind, ...]:
        """The verifier's KV, and the drafter's where its probabilities are judged."""
        return self.kv_kinds if self.speculation.coupling is Coupling.rejection else (StageKind.verify,)


FrameTopology = WorldTopology | SleepTopology
"""A topology whose stages make frames, or items in place of them, one after the other."""
Topology = WorldTopology | SleepTopology | LanguageTopology
"""The whole file."""

MODELS: dict[str, type[Topology]] = {"world": WorldTopology, "sleep": SleepTopology, "language": LanguageTopology}
"""The model of each workload."""


def topology_model(workload: object) -> type[Topology]:
    """The model of a workload's topologies. Raises `ValueError` where there is no such workload."""
    if isinstance(workload, str) and workload in MODELS:
        return MODELS[workload]
    raise ValueError(f"{workload!r} is no workload; write one of {', '.join(MODELS)}")
