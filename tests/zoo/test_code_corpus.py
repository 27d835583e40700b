"""The corpus splits by path alone; the tokenizer writes any text; batches are a function of seed and step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from zoo.code.batches import Windows
from zoo.code.corpus import KNOWN, Document, fingerprint, is_held_out, is_source, joined, stdlib
from zoo.code.tokenizer import END, END_ID, save_tokenizer, token_stream, train_tokenizer

TEXTS = [f"def area_{i}(self, width, height):\n    return width * height + {i}\n" for i in range(40)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, size=320)


def write(root: Path, files: dict[str, bytes]) -> None:
    for path, source in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(source)


def test_split_is_disjoint_and_known_by_path() -> None:
    corpus = stdlib()
    train = {document.path for document in corpus.train}
    held_out = {document.path for document in corpus.held_out}
    assert not train & held_out
    assert held_out >= KNOWN
    assert {"shutil.py", "doctest.py", "http/server.py"} <= held_out  # their checksums are multiples of 20
    assert {"argparse.py", "asyncio/tasks.py"} <= train
    assert not any(is_held_out(path) for path in train)
    assert all(is_source(path) for path in train | held_out)
    assert list(corpus.train) == sorted(corpus.train, key=lambda document: document.path)
    assert 0.03 < len(joined(corpus.held_out)) / len(joined(corpus.train)) < 0.15


@pytest.mark.parametrize(
    "path",
    ["test/test_ast.py", "ctypes/test/test_enum.py", "idlelib/idle_test/mock_idle.py", "site-packages/numpy/linalg.py",
     "encodings/cp1252.py", "_sysconfigdata__linux_x86_64-linux-gnu.py", "config-3.11/makesetup.py", "notes.txt"],
)  # fmt: skip
def test_what_is_no_code_of_the_library_stays_out(path: str) -> None:
    assert not is_source(path)


def test_library_is_read_in_order_and_by_its_coding_lines(tmp_path: Path) -> None:
    write(tmp_path, {
        "b.py": b"# -*- coding: latin-1 -*-\nname = 'M\xfcller'\n", "a/c.py": b"x = 1\r\n", "a/tests/d.py": b"x = 2\n",
        "a/__init__.py": b"\n", "heapq.py": b"heap = []\n",
    })  # fmt: skip
    corpus = stdlib(tmp_path)
    assert [document.path for document in corpus.train] == ["a/c.py", "b.py"]
    assert [document.text for document in corpus.train] == ["x = 1\n", "# -*- coding: latin-1 -*-\nname = 'Müller'\n"]
    assert [document.path for document in corpus.held_out] == ["heapq.py"]
    assert fingerprint(corpus.train) != fingerprint(corpus.train[::-1])
    with pytest.raises(FileNotFoundError, match="no Python source"):
        stdlib(tmp_path / "empty")


def test_fingerprint_knows_where_a_document_ends() -> None:
    assert fingerprint([Document("a", "xy"), Document("b", "z")]) != fingerprint(
        [Document("a", "x"), Document("b", "yz")]
    )


@given(text=st.text())
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    clean = text.replace(END, "")
    assert tokenizer.decode(tokenizer.encode(clean).ids, skip_special_tokens=False) == clean


def test_every_byte_is_a_token_and_training_is_repeatable(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == 320
    assert tokenizer.token_to_id(END) == END_ID
    every = "".join(chr(code) for code in range(0x80)) + "ÿþ€😀\u0800\ud7ff"
    assert tokenizer.decode(tokenizer.encode(every).ids) == every
    assert len({token for token in tokenizer.get_vocab() if len(token) == 1}) == 256
    assert train_tokenizer(TEXTS, size=320).to_str() == tokenizer.to_str()
    assert len(tokenizer.encode(TEXTS[0]).ids) < len(TEXTS[0]) / 3  # it did learn merges


def test_stream_has_the_end_of_text_around_every_document(tokenizer: Tokenizer) -> None:
    stream = token_stream(tokenizer, TEXTS[:3])
    ends = np.flatnonzero(stream == END_ID)
    assert len(ends) == 4
    assert ends[0] == 0
    assert ends[-1] == len(stream) - 1
    assert tokenizer.decode(stream[ends[1] + 1 : ends[2]].tolist()) == TEXTS[1]


def test_transformers_reads_the_same_tokens(tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path, 512)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in (TEXTS[0], "  if x :\n\tpass # né , .", " a . b 's n't"):
        ids = theirs.encode(text)
        assert ids == tokenizer.encode(text).ids
        assert theirs.decode(ids) == text
    assert theirs.eos_token_id == END_ID


def test_batches_are_a_function_of_seed_and_step() -> None:
    stream = np.arange(1000)
    one, two = Windows(stream, 3, 16, seed=5), Windows(stream, 3, 16, seed=5)
    late = two.at(77)  # asked for in another order
    assert one.at(3).tolist() == two.at(3).tolist()
    assert one.at(77).tolist() == late.tolist()
    assert one.at(3).tolist() != Windows(stream, 3, 16, seed=6).at(3).tolist()
    assert one.at(3).tolist() != one.at(4).tolist()


def test_an_epoch_reads_every_window_once() -> None:
    windows = Windows(np.arange(1000), 1, 16, seed=0)
    firsts = [[int(windows.at(step)[0, 0]) for step in range(e * 61, e * 61 + 61)] for e in range(2)]
    assert windows.per_epoch == 61
    for epoch in firsts:
        assert len(set(epoch)) == 61
        assert {first % 16 for first in epoch} == {min(epoch) % 16}
    assert firsts[0] != firsts[1]
    with pytest.raises(ValueError, match="too short"):
        Windows(np.arange(20), 1, 16, seed=0)
