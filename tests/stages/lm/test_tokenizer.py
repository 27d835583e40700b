"""Tokenizers from a folder, and pairs of models that have to speak the same tokens."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from paceline.stages.lm.blueprint import Blueprint
from paceline.stages.lm.folder import ModelFolderError
from paceline.stages.lm.tokenizer import Tokenizer
from paceline.stages.lm.tokenizer import check_pair as check_plans

from .models import save_random
from .tokenizers_made import END, byte_fallback, byte_level


def test_text_to_tokens_and_back(tmp_path: Path) -> None:
    byte_level(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    text = "def größer(東京都):\n\n  return '😀'"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    end = tokenizer.vocabulary()[END]
    assert tokenizer.special_ids == {end} and tokenizer.decode([*ids, end]) == text
    assert tokenizer.size == len(tokenizer.vocabulary())
    assert tokenizer.encode("") == [end]
    more = tokenizer.encode_more("\n\nclass B")
    assert tokenizer.decode([*ids, *more]) == text + "\n\nclass B" and tokenizer.encode_more("") == []


def test_a_tokenizer_without_its_configuration(tmp_path: Path) -> None:
    byte_level(tmp_path)
    ids = Tokenizer.load(tmp_path).encode("return x")
    (tmp_path / "tokenizer_config.json").unlink()
    bare = Tokenizer.load(tmp_path)
    assert bare.encode("return x") == ids and len(bare.special_ids) == 1
    with pytest.raises(ValueError, match="the prompt is empty"):
        bare.encode("")


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match=r"holds no tokenizer .* into the same folder"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelFolderError, match="its tokenizer can't be loaded"):
        Tokenizer.load(tmp_path)


def check_pair(target: Path, draft: Path) -> None:
    check_plans(Blueprint.read(target), Blueprint.read(draft))


def pair(tmp_path: Path, target_vocab: int, draft_vocab: int) -> tuple[Path, Path]:
    save_random("llama", tmp_path / "target", vocab_size=target_vocab)
    save_random("gpt2", tmp_path / "draft", vocab_size=draft_vocab)
    return tmp_path / "target", tmp_path / "draft"


def test_a_pair_with_one_tokenizer_may_be_padded_differently(tmp_path: Path) -> None:
    target, draft = pair(tmp_path, 400, 384)
    byte_level(target)
    shutil.copy(target / "tokenizer.json", draft)
    check_pair(target, draft)


def test_a_pair_without_tokenizers_has_to_have_one_size(tmp_path: Path) -> None:
    target, draft = pair(tmp_path, 97, 97)
    check_pair(target, draft)
    byte_level(target)
    check_pair(target, draft)
    save_random("gpt2", draft, vocab_size=98)
    with pytest.raises(
        ModelFolderError, match=r"has 98 tokens and .* 97, .* take a drafter of the target's own family"
    ):
        check_pair(target, draft)


def test_a_pair_of_the_same_size_may_still_speak_two_languages(tmp_path: Path) -> None:
    target, draft = pair(tmp_path, 400, 400)
    byte_level(target)
    byte_level(draft, text=["while queue: item = queue.pop()"] * 3)
    with pytest.raises(
        ModelFolderError, match=r"don't share a vocabulary: token .* in the drafter and missing in the target"
    ):
        check_pair(target, draft)
    byte_fallback(draft)
    with pytest.raises(ModelFolderError, match="don't share a vocabulary"):
        check_pair(target, draft)
