"""What a topology says of a stage: a model for each set of keys, told apart by the kind of the stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from paceline.pipeline.strict_model import LONGEST_MS, Size, StrictModel

__all__ = [
    "CLEAN",
    "PLAIN",
    "SLEEP_STAGES",
    "STAGES",
    "WORLD_STAGES",
    "BatchStageSpec",
    "DenoiseStageSpec",
    "PayloadStageSpec",
    "SleepStage",
    "StageBase",
    "StageKind",
    "StageSpec",
    "WorldStage",
]

CLEAN = "clean"
"""The name of the pass at flow time 0 that writes a frame's final KV; it follows the last step."""


class StageKind(StrEnum):
    """What a stage computes."""

    source = "source"
    denoise = "denoise"
    decode = "decode"
    sleep = "sleep"
    sink = "sink"
    draft = "draft"
    verify = "verify"


class StageBase(StrictModel):
    """One unit of compute, placed on a group."""

    kind: StageKind
    group: str
    ms: float = Field(0.0, ge=0, le=LONGEST_MS)
    """sleep: milliseconds an item takes; elsewhere: the cost of one pass that `paceline plan` assumes."""


class StageSpec(StageBase):
    """A stage that takes no key but those of every stage."""

    steps: ClassVar[tuple[int | Literal["clean"], ...]] = ()
    max_batch: ClassVar[int] = 1


class PayloadStageSpec(StageBase):
    """The source of a sleep workload."""

    item_bytes: Size = 4096
    """Size of its items; sleep stages pass them on."""
    steps: ClassVar[tuple[int | Literal["clean"], ...]] = ()
    max_batch: ClassVar[int] = 1


class BatchStageSpec(StageBase):
    """A decode or sleep stage."""

    max_batch: int = Field(1, ge=1)
    """Items of different sessions it may compute in one forward; 1 keeps results bit-identical."""
    steps: ClassVar[tuple[int | Literal["clean"], ...]] = ()


class DenoiseStageSpec(StageBase):
    """A denoise stage."""

    steps: tuple[int | Literal["clean"], ...] = ()
    """The steps it runs, e.g. `[1, clean]`."""
    max_batch: int = Field(1, ge=1)
    """Items of different sessions it may compute in one forward; 1 keeps results bit-identical."""


WORLD_STAGES: Mapping[StageKind, type[StageBase]] = {
    StageKind.denoise: DenoiseStageSpec,
    StageKind.decode: BatchStageSpec,
}
SLEEP_STAGES: Mapping[StageKind, type[StageBase]] = {
    StageKind.source: PayloadStageSpec,
    StageKind.sleep: BatchStageSpec,
}
PLAIN = "plain"
"""The tag of stages that take no key of their own."""


def _tag(own: Mapping[StageKind, type[StageBase]]) -> Callable[[object], str | None]:
    """Stages are told apart by `kind`; all that take no key of their own are of one model, whose field refuses a kind
    that there is not. What is no mapping is no stage."""

    def tag(stage: object) -> str | None:
        kind = stage.get("kind") if isinstance(stage, dict) else getattr(stage, "kind", None)
        return (str(kind) if kind in list(own) else PLAIN) if isinstance(stage, dict | StageBase) else None

    return tag


_Plain = Annotated[StageSpec, Tag(PLAIN)]
WorldStage = Annotated[
    Annotated[DenoiseStageSpec, Tag("denoise")] | Annotated[BatchStageSpec, Tag("decode")] | _Plain,
    Discriminator(_tag(WORLD_STAGES)),
]
SleepStage = Annotated[
    Annotated[PayloadStageSpec, Tag("source")] | Annotated[BatchStageSpec, Tag("sleep")] | _Plain,
    Discriminator(_tag(SLEEP_STAGES)),
]

STAGES = StageSpec | PayloadStageSpec | BatchStageSpec | DenoiseStageSpec
"""The models of stages of all workloads."""
