"""What a drafter is, and drafters by name. Nothing here needs torch: a topology is checked without it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from paceline.pipeline.speculation.drafter import Branch, Rollback
from paceline.pipeline.speculation.hedge import Alternative
from paceline.pipeline.speculation.settings import NO_DRAFTER, SpeculationSpec
from paceline.pipeline.speculation.window import Window
from paceline.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from paceline.stages.lm.decoder import Decoder
    from paceline.stages.sampling_params import SamplingParams

__all__ = [
    "DRAFTERS",
    "DraftStage",
    "DraftStep",
    "Drafter",
    "DrafterPlace",
    "ModelDrafter",
    "can_hedge",
    "make_drafter",
]


@dataclass(frozen=True, slots=True)
class DraftStep:
    """The token drafted for a branch, and what else the target may have there, with shares that sum to at most 1."""

    branch: Branch
    token: int
    others: tuple[Alternative, ...] = ()


class DraftStage(Protocol):
    """Drafts for many sessions. Called on one thread, or in the lane of its stage."""

    def open(self, session: int, seed: int) -> None:
        """Prepare for a session."""

    def step(self, steps: Sequence[tuple[Branch, list[int]]], others: int) -> Sequence[DraftStep]:
        """Draft one token for each branch, given with all tokens before it, and name up to `others` alternatives; 0
        where the drafter can't hedge. The tokens say what was rolled back. Under a deterministic coupling any token
        will do: the text is the target's."""
        ...

    def settle(self, session: int, length: int, rollback: Rollback | None) -> None:
        """A verdict has come: `length` tokens are committed, and `rollback` says what was undone, if anything."""

    def evidence(self, window: Window) -> tuple[Tensor | None, Tensor | None]:
        """Under `rejection`: q(x) of the window's drafted tokens, float64 `[n]`, and the distributions that they were
        drawn from, float32 `[n, V]`. None and None where each token was certain."""
        ...

    def close(self, session: int) -> None:
        """Free a session."""


@dataclass(frozen=True, slots=True)
class DrafterPlace:
    """Where a drafter runs: how the tokens of a session are chosen, how many tokens the target can give, and the model
    in the folder `model.draft` where the drafter has one."""

    params: Callable[[int], SamplingParams]
    vocab: int
    decoder: Decoder | None = None


class Drafter(Protocol):
    """One way to draft. The options of its constructor are `speculation.options`."""

    can_hedge: bool
    """Whether it names alternatives of a token, which hedges are chosen from"""
    has_model: bool
    """Whether it runs the model in `model.draft`, and so holds KV, which memory tiers may hold"""

    def load(self, place: DrafterPlace) -> DraftStage:
        """What drafts, on the rank that it runs on."""
        ...


class ModelDrafter:
    """A smaller model with the target's tokens."""

    can_hedge = True
    has_model = True

    def load(self, place: DrafterPlace) -> DraftStage:
        """Raises `ValueError` without a model."""
        # Imported here, as it brings torch.
        from paceline.stages.lm.draft_stage import ModelDraftStage

        if place.decoder is None:
            raise ValueError("a drafter with a model was given none; name its folder in model.draft")
        return ModelDraftStage(place.decoder, place.params, place.vocab)


DRAFTERS = Registry(
    "drafter",
    "paceline.drafters",
    {"model": "paceline.stages.lm.drafter:ModelDrafter", "ngram": "paceline.stages.lm.ngram:NgramDrafter"},
)
"""All drafters; an entry is a class, whose constructor takes the options."""


def make_drafter(spec: SpeculationSpec) -> Drafter | None:
    """The drafter of a topology with its options; None where it has none. Raises `ValueError` for a name that is none,
    and for an option that the drafter does not take."""
    if spec.drafter == NO_DRAFTER:
        return None
    made: Drafter = DRAFTERS.make(spec.drafter, spec.options)
    return made


def can_hedge(spec: SpeculationSpec) -> bool:
    """Whether a topology's drafter names alternatives."""
    drafter = make_drafter(spec)
    return drafter is not None and drafter.can_hedge
