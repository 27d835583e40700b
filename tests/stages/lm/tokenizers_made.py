"""Small tokenizers of the two great families, trained on the spot."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXT = ["def f(x):\n    return x + 1  # größer, 東京\n", "for name in names: print(name, end='\\n\\n')"] * 3
END = "<|end|>"


def byte_level(folder: Path, size: int = 330, text: list[str] = TEXT) -> None:
    """Byte-level BPE as GPT-2, Llama-3 and Qwen have it, with a special and an ordinary added token."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        text,
        trainers.BpeTrainer(vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False),
    )
    made.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("東京都", normalized=False)])
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END).save_pretrained(folder)


def byte_fallback(folder: Path) -> None:
    """As sentencepiece makes it for Llama-2 and Gemma: a mark for spaces, bytes for what is unknown."""
    letters = sorted(set("".join(TEXT)) - set("東京 "))
    names = [END, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *letters, "▁f", "▁return", "re", "na", "▁na"]
    vocabulary = {name: number for number, name in enumerate(names)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[("▁", "f"), ("r", "e"), ("n", "a")], byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens([END])
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END).save_pretrained(folder)
