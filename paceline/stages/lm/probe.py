"""What a model's class makes of its configuration, found by running its own forward without weights.

A configuration may hold keys that the class ignores, and a class may do what no key says. So nothing is concluded from
`config.json`: the forward runs once on the meta device, where tensors have shapes and no values, and the cache and the
attention function write down what every layer hands them. A second forward, over the embedding, the final norm and the
head in a small size, with stand-ins for the layers, shows whether a model does more than call its layers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from paceline.stages.lm.anatomy import Anatomy
from paceline.stages.lm.attention import IMPLEMENTATION, KeysSeen, Listener, Pair, PassCache, attach
from paceline.stages.lm.folder import ModelFolderError, first_line
from paceline.stages.lm.recurrence import Recurrence, nbytes_of
from paceline.stages.lm.skeleton import PassedOn, put
from paceline.stages.lm.traits import LayerTraits

__all__ = ["probe"]

_TOKENS = 5
_ROWS = 32
"""Rows of the small embeddings and the small head."""
_HANDED = frozenset(
    ("attention_mask", "position_ids", "past_key_values", "layer_past", "use_cache", "position_embeddings",
     "cache_position", "output_attentions", "output_router_logits", "return_dict", "is_causal",
     "output_hidden_states", "shared_kv_states")
)  # fmt: skip
"""What a layer may be given by name: a run of layers gives it too, or it asks for further results only, or holds what
layers without KV of their own would read, of which there are none where every layer writes some."""
_UNLIKE = 1e-4


def probe(model: Any, anatomy: Anatomy) -> tuple[LayerTraits, ...]:
    """The traits of every layer of a skeleton, which is left as it is. Raises `ModelFolderError` for a model that can't
    be run layer by layer."""
    traits = _listened(model)
    _only_calls_its_layers(model, traits)
    return traits


class _RealRotary(nn.Module):
    """A rotary table on the meta device that is made by the real one: it may look at the positions it is given."""

    def __init__(self, real: nn.Module) -> None:
        super().__init__()
        self._real = [real]

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name) if name.startswith("_") else getattr(self._real[0], name)

    def forward(self, like: Tensor, *args: Any, **kwargs: Any) -> Any:
        def real(item: Any) -> Any:
            return torch.arange(item.shape[-1])[None] if isinstance(item, Tensor) else item

        given = {name: real(item) for name, item in kwargs.items()}
        made = self._real[0](torch.zeros(1, 1, 1, dtype=like.dtype), *map(real, args), **given)
        return made.to("meta") if isinstance(made, Tensor) else tuple(part.to("meta") for part in made)


class _Layer:
    """What was seen of one layer."""

    def __init__(self) -> None:
        self.kv: list[Pair] = []
        self.masks: list[object] = []
        self.states: list[int] = []
        """Bytes of the states of constant size that it has."""
        self.as_tuple = False
        self.handed: set[str] = set()


class _Notes(Listener):
    """Takes the place of a pass: writes down what layers hand to the cache and to the attention."""

    def __init__(self, depth: int) -> None:
        self.layers = [_Layer() for _ in range(depth)]

    def write(self, layer: int, k_HMD: Tensor, v_HMD: Tensor) -> None:
        self.layers[layer].kv.append((k_HMD, v_HMD))

    def attend(
        self,
        layer: int,
        q_HMD: Tensor,
        scale: float | None,
        mask: object = None,
        kv: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        seen = self.layers[layer]
        seen.masks.append(mask)
        if kv is None or not seen.kv or [t[0].shape for t in kv] != [t.shape for t in seen.kv[-1]]:
            raise NotImplementedError(
                "its attention reads other keys and values than those that it puts into the cache"
            )
        return q_HMD.new_empty(1, q_HMD.shape[1], q_HMD.shape[0], seen.kv[-1][1].shape[2])

    def recur(self, layer: int, rows: tuple[Tensor, ...], rule: Recurrence) -> Tensor:
        """Take in what a layer hands to its state of constant size."""
        state = rule.empty()
        self.layers[layer].states.append(nbytes_of(state))
        return rule.advance(state, tuple(part[:1] for part in rows))[1].expand(len(rows[0]), -1)


def _listened(model: Any) -> tuple[LayerTraits, ...]:
    name = type(model).__name__
    deaf = copy.deepcopy(model)
    anatomy = Anatomy.of(deaf)
    rotary = None if anatomy.rotary is None else copy.deepcopy(anatomy.rotary.module)
    deaf.to("meta")
    if anatomy.rotary is not None and rotary is not None:
        put(deaf, anatomy.rotary.name, _RealRotary(rotary))
    deaf.config._attn_implementation = IMPLEMENTATION
    # Other ways through experts look at values, of which there are none here.
    deaf.config._experts_implementation = "batched_mm"
    hidden = anatomy.embedding.module.weight.shape[1]
    notes, cache = _Notes(len(anatomy.layers)), PassCache()
    for part, seen in zip(anatomy.layers, notes.layers, strict=True):
        attach(part.module, cache)
        part.module.register_forward_hook(_noting(seen), with_kwargs=True)
    cache.current = notes
    try:
        with torch.inference_mode():
            deaf(
                # Not tokens: some models look at them, to warn of padding.
                inputs_embeds=torch.empty(1, _TOKENS, hidden, dtype=model.dtype, device="meta"),
                past_key_values=cache,
                use_cache=True,
            )
    except Exception as error:  # whatever the model's own code raises when it is called in a way it does not know
        why = _why(error)
        raise ModelFolderError(
            f"{name} can't be run layer by layer: {why}; models built like Llama, Qwen3 or GPT-2 run"
        ) from error
    return tuple(_traits(name, part, seen) for part, seen in zip(anatomy.layers, notes.layers, strict=True))


def _why(error: Exception) -> str:
    """What it means that a model's own code failed here."""
    said = first_line(error)
    if KeysSeen.__name__ in said:
        return "its attention is one of its own, beside Transformers' interface"
    if isinstance(error, IndexError):
        return "it has layers that keep their state in a way that is no KV cache"
    if "meta" in said:
        return "what its forward calls depends on values, so that it can't be checked before the weights are read"
    return said


def _noting(seen: _Layer) -> Any:
    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        seen.as_tuple = not isinstance(result, Tensor)
        seen.handed |= {key for key, value in kwargs.items() if value is not None and value is not False}

    return note


def _traits(model: str, part: Any, seen: _Layer) -> LayerTraits:
    where = f"{model}: its layer `{part.name}` ({type(part.module).__name__})"
    of_state = len(seen.states) == 1 and not seen.kv and not seen.masks
    if not of_state and len(seen.kv) != 1:
        raise ModelFolderError(
            f"{where} keeps its state in a way that is no KV cache; give a model with attention in every layer"
        )
    if not of_state and len(seen.masks) != 1:
        raise ModelFolderError(
            f"{where} has an attention of its own, beside Transformers' interface; models built like Llama, Qwen3 or "
            "GPT-2 run"
        )
    odd = sorted(seen.handed - _HANDED)
    if odd:
        raise ModelFolderError(f"{where} is given `{odd[0]}`, which is not supported; give another model")
    if of_state:
        return LayerTraits(None, 0, 0, 0, seen.as_tuple, seen.states[0])
    mask = seen.masks[0]
    if not isinstance(mask, KeysSeen) or not mask.understood:
        raise ModelFolderError(
            f"{where} has a mask that is neither causal nor a sliding window; only those run, so give another model"
        )
    key, value = seen.kv[0]
    return LayerTraits(mask.window, key.shape[0], key.shape[2], value.shape[2], seen.as_tuple)


@torch.inference_mode()
def _only_calls_its_layers(model: Any, traits: Sequence[LayerTraits]) -> None:
    """Compare the way embedding, layers, norm, head with the model's forward, in a small size."""
    name = type(model).__name__
    small = copy.deepcopy(model)
    anatomy = Anatomy.of(small)
    for index, (part, each) in enumerate(zip(anatomy.layers, traits, strict=True)):
        put(small, part.name, PassedOn(each.as_tuple, _bend(index)))
    generator = torch.Generator().manual_seed(1)
    for end in (anatomy.embedding, anatomy.positions, anatomy.norm, anatomy.head):
        if end is not None:
            _made_small(end.module, generator)
    ids = torch.arange(1, 1 + _TOKENS)[None]
    try:
        theirs = small(input_ids=ids, use_cache=False).logits[0].float()
        hidden = anatomy.embedding.module(ids)
        if anatomy.positions is not None:
            hidden = hidden + anatomy.positions.module(torch.arange(_TOKENS)[None])
        for index in range(len(traits)):
            hidden = PassedOn(False, _bend(index))(hidden)
        ours = anatomy.head.module(anatomy.norm.module(hidden))[0].float()
    except Exception as error:
        raise ModelFolderError(
            f"{name} can't be run layer by layer: {first_line(error)}; models built like Llama, Qwen3 or GPT-2 run"
        ) from error
    difference = float((ours - theirs).norm() / theirs.norm()) if ours.shape == theirs.shape else 1.0
    if not difference <= _UNLIKE:
        raise ModelFolderError(
            f"{name}: its forward does more than call its layers (results differ by {difference:.1%}); models built "
            "like Llama, Qwen3 or GPT-2 run"
        )


def _bend(layer: int) -> float:
    return 0.3 + 0.1 * (layer % 3)


def _made_small(module: nn.Module, generator: torch.Generator) -> None:
    """Real parameters; of the many rows of an embedding or a head only a few."""
    for owner in module.modules():
        few = isinstance(owner, (nn.Embedding, nn.Linear))
        for key, parameter in list(owner.named_parameters(recurse=False)):
            rows = min(_ROWS, parameter.shape[0]) if few else parameter.shape[0]
            values = torch.randn(rows, *parameter.shape[1:], generator=generator, dtype=torch.float32)
            setattr(owner, key, nn.Parameter(values.to(parameter.dtype), requires_grad=False))
        if isinstance(owner, nn.Embedding) and owner.padding_idx is not None:
            owner.padding_idx = None
