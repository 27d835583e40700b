"""The tokenizer of a model's folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paceline.stages.lm.detokenise import ByteLevelPieces, Pieces, WindowPieces
from paceline.stages.lm.folder import ModelFolderError

if TYPE_CHECKING:
    from paceline.stages.lm.blueprint import Blueprint

__all__ = ["Tokenizer", "check_pair", "has_tokenizer"]

_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer of some kind."""
    return any((folder / name).is_file() for name in _FILES)


class Tokenizer:
    """Text to token ids and back."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._backend = getattr(inner, "backend_tokenizer", None)
        special = {int(token) for token in inner.all_special_ids}
        if self._backend is not None:
            added = self._backend.get_added_tokens_decoder()
            special |= {int(token) for token, content in added.items() if content.special}
        self.special_ids = frozenset(special)
        """Tokens that are no text: end of text and the like."""
        self._start = next((t for t in (inner.bos_token_id, inner.eos_token_id) if t is not None), None)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Raises `ModelFolderError` where the folder holds no tokenizer, or one that needs code of its own."""
        if not has_tokenizer(folder):
            raise ModelFolderError(
                f"{folder}: holds no tokenizer (tokenizer.json); download the tokenizer's files into the same folder"
            )
        # Imported here: it takes seconds, and a missing file should not wait for it.
        import transformers

        auto: Any = transformers.AutoTokenizer
        fast: Any = transformers.PreTrainedTokenizerFast
        try:
            if (folder / "tokenizer_config.json").is_file() or not (folder / "tokenizer.json").is_file():
                inner = auto.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
            else:
                inner = fast(tokenizer_file=str(folder / "tokenizer.json"))
        except Exception as error:  # whatever a broken or foreign tokenizer makes Transformers raise
            raise ModelFolderError(f"{folder}: its tokenizer can't be loaded: {error}") from error
        return cls(inner)

    @property
    def size(self) -> int:
        """How many tokens there are, added ones included."""
        return len(self._inner)

    def vocabulary(self) -> dict[str, int]:
        """Ids by token."""
        return {str(token): int(number) for token, number in self._inner.get_vocab().items()}

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, with what the model expects before it; never empty: an empty prompt is the token that
        begins a text (or ends the one before). Raises `ValueError` where there is none."""
        ids = [int(token) for token in self._inner.encode(text)]
        if not ids:
            if self._start is None:
                raise ValueError("the prompt is empty and the tokenizer has no token that begins a text; give a prompt")
            ids = [int(self._start)]
        return ids

    def encode_more(self, text: str) -> list[int]:
        """Token ids of a text that follows another one."""
        return [int(token) for token in self._inner.encode(text, add_special_tokens=False)] if text else []

    def decode(self, ids: Sequence[int]) -> str:
        """Text of tokens, without special ones."""
        if self._backend is not None:
            return str(self._backend.decode(list(ids), skip_special_tokens=True))
        return str(self._inner.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def pieces(self, context: Sequence[int] = (), cut: bool = False) -> Pieces:
        """Decodes token by token what comes after `context`. With `cut` the context may end within a character, which
        is then part of what comes."""
        from tokenizers import decoders

        if self._backend is not None and isinstance(self._backend.decoder, decoders.ByteLevel):
            return ByteLevelPieces(self._name, context if cut else ())
        return WindowPieces(self.decode, self.special_ids, context, cut)

    def _name(self, token: int) -> str | None:
        if token in self.special_ids or self._backend is None:
            return None
        name = self._backend.id_to_token(token)
        return None if name is None else str(name)


def check_pair(target: Blueprint, draft: Blueprint) -> None:
    """Check that a drafter speaks the target's tokens.

    Embeddings are padded to different sizes in many families, and some add a token of their own, so tokenizers are
    compared, where both folders have one: an id that both have has to be the same token. Without them the embeddings
    have to be of one size. Raises `ModelFolderError`.
    """
    one, other = target.folder.path, draft.folder.path
    advice = "take a drafter of the target's own family"
    if not (has_tokenizer(one) and has_tokenizer(other)):
        if target.rows != draft.rows:
            raise ModelFolderError(
                f"{other} has {draft.rows} tokens and {one} {target.rows}, and without tokenizers in both folders "
                f"nobody can tell which are the same; {advice}"
            )
        return
    ours, theirs = Tokenizer.load(one).vocabulary(), Tokenizer.load(other).vocabulary()
    by_id = {number: token for token, number in ours.items()}
    odd = [
        token
        for token, number in theirs.items()
        if ours.get(token, number) != number or by_id.get(number, token) != token
    ]
    if odd:
        token = min(odd, key=lambda t: (len(t), t))
        raise ModelFolderError(
            f"{other} and {one} don't share a vocabulary: token {token!r} is {theirs[token]} in the drafter and "
            f"{ours.get(token, 'missing')} in the target, which has {by_id.get(theirs[token], 'nothing')!r} there; "
            f"{advice}"
        )
