"""A small target and drafter in folders as a user would have them, with a tokenizer of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEXT = (
    "def add(a, b):\n    return a + b\n\n\nclass Thing:\n    def __init__(self, name):\n        self.name = name\n" * 4
)
VOCAB = 300
END = "<|end|>"
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


def save_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END).save_pretrained(folder)


def save_pair(folder: Path, likeness: float = 0.08) -> tuple[Path, Path]:
    """A random target of three layers, and a drafter that is the same but for noise of `likeness` on its weights: so it
    is right often, and wrong often."""
    target, draft = folder / "target", folder / "draft"
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=3, **SHAPE)).eval()
        model.save_pretrained(target)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * parameter.std() * likeness)
        model.save_pretrained(draft)
    for path in (target, draft):
        save_tokenizer(path)
    return target, draft
