"""The tokens of the embedded language models: byte-level byte-pair encoding, 2,048 tokens.

Every byte is a token of its own if need be, so any text can be written. There is one special token, the end of text; a
stream has it before, between and behind its documents, so that a model knows where a document begins.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

__all__ = ["END", "END_ID", "VOCABULARY", "load_tokenizer", "save_tokenizer", "token_stream", "train_tokenizer"]

END = "<|endoftext|>"
END_ID = 0
VOCABULARY = 2048


def train_tokenizer(texts: Iterable[str], size: int = VOCABULARY) -> Tokenizer:
    """Learn the merges from texts; the same texts give the same tokenizer. The end of text is token 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` as Transformers reads them; `context` is in tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=False) + "\n", encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "pad_token": END,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read `tokenizer.json`; raises `FileNotFoundError` where the folder has none."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give a folder that holds a model with its tokenizer")
    return Tokenizer.from_file(str(path))


def token_stream(tokenizer: Tokenizer, texts: Iterable[str]) -> npt.NDArray[np.int64]:
    """Tokens `[N]` of the texts, the end of text before, between and behind them."""
    parts: list[list[int]] = [[END_ID]]
    for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False):
        parts += [encoding.ids, [END_ID]]
    return np.concatenate([np.asarray(part, np.int64) for part in parts])
