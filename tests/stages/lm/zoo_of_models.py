"""Tiny random models of every causal language model type of Transformers that can be built small."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

KINDS = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
VOCAB = 97
WINDOW = 7
LARGEST = 4 << 20
"""Weights of the largest model that counts as tiny."""
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 96,
    "sliding_window": WINDOW,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 96,
    "n_inner": 48,
    "ffn_dim": 48,
    "word_embed_proj_dim": 32,
    "num_layers": 2,
    "num_heads": 4,
    "rotary_dim": 8,
    "d_model": 32,
    "n_heads": 4,
    "n_layers": 2,
    "max_seq_len": 96,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 48,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "state_size": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
"""Under the names that configurations use; a class takes those that it knows."""
MORE: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1},
    "qwen3": {"use_sliding_window": True, "max_window_layers": 1},
    "phi": {"partial_rotary_factor": 0.5},
    "persimmon": {"partial_rotary_factor": 0.5},
    "stablelm": {"partial_rotary_factor": 0.5},
    "gpt_neox": {"rotary_pct": 0.5},
    "dots1": {"n_shared_experts": 1},
    "lfm2_moe": {"layer_types": ["full_attention", "conv"]},
    "mamba2": {"head_dim": 16, "num_heads": 4},
    "bamba": {"mamba_n_heads": 4, "mamba_d_head": 16},
    "granitemoehybrid": {"mamba_n_heads": 4, "mamba_d_head": 16},
    "zamba": {"num_hidden_layers": 2, "layers_block_type": ["mamba", "hybrid"]},
    "zamba2": {"num_hidden_layers": 2, "layers_block_type": ["mamba", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
    "cohere_compass_text": {"layer_types": ["sliding_attention", "full_attention"]},
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 12]},
    "roc_bert": {"pronunciation_vocab_size": 20, "shape_vocab_size": 20},
}


def config_of(kind: str) -> Any:
    """A configuration in a small size: nothing but sizes differs from the type's own defaults."""
    cls = CONFIG_MAPPING[kind]
    known = _known(cls)
    sizes = {key: value for key, value in SIZES.items() if key in known}
    if "qk_rope_head_dim" in known:
        # Multi-head latent attention rotates a part of each head, and has as many key heads as heads.
        sizes.pop("head_dim", None)
        sizes |= {"num_key_value_heads": 4} if "num_key_value_heads" in known else {}
    return cls(**(sizes | MORE.get(kind, {})))


def _known(cls: Any) -> set[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = cls()
    return set(vars(made)) | set(getattr(cls, "attribute_map", {}))


def save(kind: str, folder: Path, **changes: Any) -> Any:
    """A random model of a type, saved into a folder; what Transformers loads from there, in evaluation mode.

    Raises whatever the type's code raises where it can't be built in this size."""
    config = copy.deepcopy(config_of(kind))
    for key, value in changes.items():
        setattr(config, key, value)
    with torch.random.fork_rng(), torch.device("meta"):
        weights = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    if weights > LARGEST:
        raise ValueError(f"{kind} has {weights} weights in the smallest size that is known of it")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        for parameter in model.parameters():
            # Some types begin with zeros, which would hide what is computed with them.
            if not parameter.any() and parameter.is_floating_point():
                torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval().requires_grad_(False)
