"""Compares the direct way through the layers with the model's own forward, once, when a model is loaded.

Models differ in what their forward does beside calling the layers: Granite multiplies embeddings, Cohere scales logits,
Gemma-2 bends them. Running another formula than the model's would give fluent nonsense, so every run of layers is
checked on a few tokens, whatever its type, with Transformers' eager attention as the reference. What is checked is what
will run: two sequences in a pass, in pieces, over tiers where there are some, beyond sliding windows that are not too
wide.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from paceline.stages.lm.folder import ModelFolderError, first_line
from paceline.stages.lm.layer_run import LayerRun

__all__ = ["Forwards", "self_check"]

_TOKENS = 12
_OTHERS = 7
"""Tokens of the second sequence."""
_WIDEST_WINDOW = 64
"""Sliding windows up to this size are outrun by the check; wider ones would cost a long prefill."""


class Forwards(Protocol):
    """What a decoder does; see there."""

    def open(self) -> int:
        """A new sequence."""

    def forward(self, batch: Sequence[tuple[int, Tensor]]) -> list[Tensor]:
        """Append inputs to sequences."""

    def close(self, sequence: int) -> None:
        """Free a sequence."""


@torch.inference_mode()
def self_check(model: Any, run: LayerRun, rows: int, decoders: Sequence[Forwards]) -> None:
    """Check a run of layers as each of these decoders computes it. `model` is the reference, with stand-ins for the
    parts that are not in the run, and `rows` the number of tokens that it knows.

    Raises `ModelFolderError` where the two ways differ or one of them fails.
    """
    name = type(model).__name__
    one = _given(run, rows, _length(run), model.config)
    other = _given(run, rows, min(_OTHERS, len(one)), model.config).flip(0)
    try:
        theirs = torch.cat([_theirs(model, run, given) for given in (one, other)])
        for decoder in decoders:
            ours = _ours(decoder, one, other)
            # The two ways round differently; another formula differs by far more, also in 16 bits.
            tolerance = 1e-3 if run.dtype in (torch.float32, torch.float64) else 0.1
            difference = float((ours.float() - theirs.float()).norm() / theirs.float().norm())
            if not difference <= tolerance:
                raise ModelFolderError(
                    f"{name}: its forward does more than call its layers (results differ by {difference:.1%}); "
                    "models built like Llama, Qwen3 or GPT-2 run"
                )
    except ModelFolderError:
        raise
    except Exception as error:  # whatever the model's own code raises when it is called in a way it does not know
        raise ModelFolderError(
            f"{name} can't be run layer by layer: {first_line(error)}; models built like Llama, Qwen3 or GPT-2 run"
        ) from error


def _length(run: LayerRun) -> int:
    windows = [window for window in run.windows if window is not None and window <= _WIDEST_WINDOW]
    count = max([_TOKENS, *(window + 4 for window in windows)])
    return min(count, run.max_positions or count)


def _given(run: LayerRun, rows: int, count: int, config: Any) -> Tensor:
    """Token ids `[n]`, or hidden states `[n, C]` where the run is not the first."""
    numbers = torch.arange(count, device=run.device)
    if run.first:
        return (numbers * 7919 + 11) % rows
    size = int(config.hidden_size)
    return torch.arange(count * size, device=run.device).mul(0.37).sin().view(count, size).to(run.dtype)


def _ours(decoder: Forwards, one: Tensor, other: Tensor) -> Tensor:
    """The direct way: both sequences in every pass, in three pieces so that the KV is read too."""
    held = [decoder.open(), decoder.open()]
    given: tuple[list[Tensor], list[Tensor]] = ([], [])
    pieces = [torch.split(tokens, _pieces(len(tokens))) for tokens in (one, other)]
    for pair in zip(*pieces, strict=True):
        results = decoder.forward([(number, part) for number, part in zip(held, pair, strict=True) if len(part)])
        for index in (index for index, part in enumerate(pair) if len(part)):
            given[index].append(results.pop(0))
    for number in held:
        decoder.close(number)
    return torch.cat([*given[0], *given[1]])


def _pieces(count: int) -> list[int]:
    last, middle = min(1, count), min(2, max(0, count - 1))
    return [count - last - middle, middle, last]


def _theirs(model: Any, run: LayerRun, given: Tensor) -> Tensor:
    named = {"input_ids": given[None]} if run.first else {"inputs_embeds": given[None]}
    logits: Tensor = model(**named, use_cache=False).logits[0]
    return logits
