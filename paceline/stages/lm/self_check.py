"""Compares the direct way through the layers with the model's own forward, once, when a model is loaded.

Models differ in what their forward does beside calling the layers: Granite multiplies embeddings, Cohere scales logits,
Gemma-2 bends them. Running another formula than the model's would give fluent nonsense, so every run of layers is
checked on a few tokens, whatever its type, with Transformers' eager attention as the reference.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from paceline.stages.lm.anatomy import Anatomy
from paceline.stages.lm.attention import IMPLEMENTATION, Segment
from paceline.stages.lm.folder import ModelFolderError
from paceline.stages.lm.layer_run import LayerRun
from paceline.stages.lm.sequence_kv import SequenceKV

__all__ = ["self_check"]

_TOKENS = 12
_WIDEST_WINDOW = 64
"""Sliding windows up to this size are outrun by the check; wider ones would cost a long prefill."""


class _Output:
    """What a base model gives: hidden states, and None for all else that a head may ask for."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getattr__(self, name: str) -> None:
        return None

    def __getitem__(self, index: int) -> Tensor:
        return (self.last_hidden_state,)[index]


class _Given(nn.Module):
    """Stands in for the base model where only the head is here."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self._output = _Output(hidden)

    def forward(self, *args: Any, **kwargs: Any) -> _Output:
        return self._output


@torch.inference_mode()
def self_check(model: Any, anatomy: Anatomy, run: LayerRun) -> None:
    """Check the embedding and layers of a first run and the head of a last one. Changes `model`, which is only the
    shell that the parts came in. Raises `ModelFolderError` where the two ways differ or one of them fails."""
    if not run.first and not run.last:
        return
    name, config = type(model).__name__, model.config
    try:
        if run.first:
            ids = _ids(run, int(config.vocab_size))
            ours = _ours(run, ids)
            config._attn_implementation = "eager"
            theirs = _theirs(model, anatomy, run, ids)
        else:
            hidden = torch.arange(_TOKENS * int(config.hidden_size), device=run.device).mul(0.37).sin()
            hidden = hidden.view(1, _TOKENS, -1).to(run.dtype)
            ours = run.logits(hidden)
            setattr(model, model.base_model_prefix, _Given(anatomy.norm.module(hidden)))
            theirs = model(input_ids=torch.zeros(1, _TOKENS, dtype=torch.int64, device=run.device)).logits[0]
    except Exception as error:  # whatever the model's own code raises when it is called in a way it does not know
        raise ModelFolderError(f"{name} can't be run layer by layer: {error}") from error
    finally:
        config._attn_implementation = IMPLEMENTATION
    # The two ways round differently; another formula differs by far more, also in 16 bits.
    tolerance = 1e-3 if run.dtype in (torch.float32, torch.float64) else 0.1
    difference = float((ours.float() - theirs.float()).norm() / theirs.float().norm())
    if not difference <= tolerance:
        raise ModelFolderError(
            f"{name}: its forward does more than call its layers (results differ by {difference:.1%}); "
            "models built like Llama, Qwen3 or GPT-2 run"
        )


def _ids(run: LayerRun, vocab: int) -> Tensor:
    windows = [window for window in run.windows if window is not None and window <= _WIDEST_WINDOW]
    count = max([_TOKENS, *(window + 4 for window in windows)])
    count = min(count, run.max_positions or count)
    return (torch.arange(count, device=run.device) * 7919 + 11) % vocab


def _ours(run: LayerRun, ids: Tensor) -> Tensor:
    """The direct way, in three chunks so that the KV is read too."""
    kv = SequenceKV(len(run.layers))
    count = len(ids)
    given = []
    for start, stop in ((0, count - 3), (count - 3, count - 1), (count - 1, count)):
        segments = [Segment(kv, 0, stop - start, start)]
        positions = run.positions(segments, count - 1)
        hidden = run.through(run.embed(ids[start:stop], positions), segments, positions)
        segments[0].commit()
        given.append(run.logits(hidden) if run.last else hidden[0])
    return torch.cat(given)


def _theirs(model: Any, anatomy: Anatomy, run: LayerRun, ids: Tensor) -> Tensor:
    if run.last:
        whole: Tensor = model(input_ids=ids[None], use_cache=False).logits[0]
        return whole.float()
    base = getattr(model, model.base_model_prefix)
    setattr(base, anatomy.layers_name, nn.ModuleList([anatomy.layers[index].module for index in run.layers]))
    setattr(base, anatomy.norm.name.rpartition(".")[2], nn.Identity())
    some: Tensor = base(input_ids=ids[None], use_cache=False).last_hidden_state[0]
    return some
