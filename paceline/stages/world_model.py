"""What the runtime asks of a world model and of its decoder: a causal denoiser, cut at the point where attention reads
the cached context.

The runtime gathers the keys and values of earlier frames, wherever they lie, and computes the attention. The model does
all else: it embeds a latent, projects queries, keys and values, adds what attention returned, and takes the step from
time t to time r. Keys are cached before rotation and rotated where they are read.

Shape suffixes: R rows (frames computed together), N tokens of a frame, M tokens of the context and of the frame, F
frames that a pass reads, C width, H heads, D head size, P whatever a rotation of one token is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from paceline.kernels.philox import Purpose, normal
from paceline.pipeline.view import Pose
from paceline.stages.item import Meta
from paceline.stages.world_file import WorldHeader

__all__ = ["AnyWorldModel", "AnyWorldSession", "FrameDecoder", "WorldModel", "WorldSession", "fresh_noise"]

ConditionT = TypeVar("ConditionT")
EmbeddingT = TypeVar("EmbeddingT")
GivenT = TypeVar("GivenT", contravariant=True)
MadeT = TypeVar("MadeT", covariant=True)


class WorldSession(Protocol[GivenT, MadeT]):
    """What a model keeps of one session on one rank: its seed, and whatever is computed once for it, such as the
    keys and values of cross-attention to a text."""

    def start_noise(self, frame: int, condition: GivenT) -> Tensor:
        """What a frame is denoised from: a latent of `WorldHeader.latent`, a function of seed, frame and condition."""
        ...

    def embed(self, frame: int, t: float, r: float, condition: GivenT) -> MadeT:
        """What all layers of a pass need of its times and condition, such as modulations and the keys and values of
        cross-attention. The clean pass has t = r, the last of the step times."""
        ...

    def step_to(self, frame: int, step: int, x: Tensor, output: Tensor, t: float, r: float) -> Tensor:
        """The latent at time r of a latent `x` at time t. `output` is what `leave` returned for it.

        The model decides what its output means. One that adds fresh noise between steps draws it with `fresh_noise`.
        """
        ...


class WorldModel(Protocol[ConditionT, EmbeddingT]):
    """A causal denoiser over frames of tokens. `ConditionT` is the model's own type of what is known of a frame before
    it is computed; one is kept as long as its frame may be read, so it is small. `EmbeddingT` is what `embed` returns.

    Everything is a function of weights, seed and inputs. No method may use a global random generator.
    """

    header: WorldHeader
    device: torch.device

    def condition(self, meta: Meta) -> ConditionT:
        """The condition in an item's metadata, as the model's feed wrote it."""
        ...

    def dummy_condition(self) -> ConditionT:
        """Any valid condition, to compute once before the first frame comes."""
        ...

    def pose(self, condition: ConditionT) -> Pose:
        """Where a frame looks. Called only where `WorldHeader.view` is set."""
        ...

    def open(self, seed: int) -> WorldSession[ConditionT, EmbeddingT]:
        """A session with a seed."""
        ...

    def batch(self, embeddings: Sequence[EmbeddingT]) -> EmbeddingT:
        """The embeddings of several rows as one. A single one may be returned as it is."""
        ...

    def enter(self, x: Tensor, read: Tensor | None = None) -> Tensor:
        """Latents `[R, *latent]` to the residual stream `[R, N, C]`. `read` `[R, *MemoryShape.read]` is what the frames
        read from a context memory, where the topology has one. Such a model also implements `MemoryModel`."""
        ...

    def project(self, layer: int, x_RNC: Tensor, embedding: EmbeddingT) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of a layer before rotation, each `[R, H, N, D]`; keys and values in
        `WorldHeader.kv_dtype`."""
        ...

    def finish(self, layer: int, x_RNC: Tensor, o_RHND: Tensor, embedding: EmbeddingT) -> Tensor:
        """The residual stream after a layer, whose attention returned `o`. Cross-attention and feed-forward parts come
        here."""
        ...

    def leave(self, x_RNC: Tensor, embedding: EmbeddingT) -> Tensor:
        """Residual stream to the output `[R, *latent]`."""
        ...

    def frame_rotation(self, condition: ConditionT) -> Tensor:
        """The part `[N, ...]` of the rotation of a frame's tokens that is the same for every reader. It is kept while
        the frame is in the window."""
        ...

    def rotation(self, frame: int, reads: Sequence[int], own: Sequence[Tensor]) -> Tensor:
        """Rotations `[F + 1, N, P]` of the keys of the frames `reads`, and last of the keys and queries of `frame`
        itself. `own` has the `frame_rotation` of each, in the same order."""
        ...

    def rotate(self, x_HMD: Tensor, rotation_MP: Tensor) -> Tensor:
        """Queries or keys, rotated."""
        ...


class FrameDecoder(Protocol):
    """Turns latents into pictures, with a state for each session where the decoder is causal over time."""

    def open(self, session: int) -> None:
        """Start a session."""
        ...

    def decode(self, session: int, frame: int, latent: Tensor) -> Tensor:
        """Pictures `[K, H, W, 3]`, uint8 on the CPU, of the latent of a frame. `frame` counts generated frames from 0,
        and each comes once, in order. K is 1 to `WorldHeader.pictures`."""
        ...

    def close(self, session: int) -> None:
        """Free the state of a session."""
        ...


AnyWorldModel = WorldModel[Any, Any]
AnyWorldSession = WorldSession[Any, Any]


def fresh_noise(seed: int, frame: int, step: int, shape: tuple[int, ...], device: str | torch.device = "cpu") -> Tensor:
    """Standard normal float32 noise that a model adds between `step` of a frame and the next: a function of the
    session's seed, the frame and the step. `step` is below 65536."""
    return normal(seed, frame << 16 | step, Purpose.renoise, shape, device)
