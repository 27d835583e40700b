"""Ranks believe what carries the secret of their run, and nothing else."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed import PrefixStore

from paceline.runtime.auth import SECRET_VARIABLE, RunSecret, find_secret, make_secret
from paceline.runtime.errors import RendezvousError
from paceline.runtime.rendezvous import Rendezvous
from tests.harness import free_port

KEY = b"a key that no other process has"


@given(st.binary(max_size=64), st.text(max_size=10), st.integers(0, 10_000))
def test_what_was_sealed_comes_back_and_any_flipped_bit_is_found(payload: bytes, name: str, at: int) -> None:
    secret = RunSecret(KEY)
    sealed = secret.seal(name, payload)
    assert secret.unseal(name, sealed) == payload
    damaged = bytearray(sealed)
    damaged[at // 8 % len(damaged)] ^= 1 << at % 8
    for wrong, under in ((bytes(damaged), name), (sealed, name + "x"), (sealed[:-1], name), (b"", name)):
        with pytest.raises(RendezvousError, match="was not written by a rank of this run"):
            secret.unseal(under, wrong)
    with pytest.raises(RendezvousError):
        RunSecret(b"another key").unseal(name, sealed)
    assert RunSecret(b"x").token(name) != secret.token(name) != secret.token(name + "x")


def test_where_the_secret_comes_from(tmp_path: Path) -> None:
    run_dir, cache = tmp_path / "run", tmp_path / "cache"
    run_dir.mkdir()
    environment = {"XDG_CACHE_HOME": str(cache)}
    sealed = find_secret(run_dir, "127.0.0.1", environment).seal("x", b"y")
    # Of one user: the same for every rank, and for nobody else to read.
    file = cache / "paceline" / "secret"
    assert find_secret(None, "::1", environment).unseal("x", sealed) == b"y"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["secret"]
    make_secret(run_dir)
    assert stat.S_IMODE((run_dir / "secret").stat().st_mode) == 0o600
    own = find_secret(run_dir, "10.0.0.1", environment).seal("x", b"y")
    assert find_secret(run_dir, "127.0.0.1", environment).unseal("x", own) == b"y"
    named = {**environment, SECRET_VARIABLE: "0123456789abcdef"}
    shared = find_secret(run_dir, "10.0.0.1", named).seal("x", b"y")
    assert find_secret(None, "127.0.0.1", named).unseal("x", shared) == b"y"
    assert len({sealed, own, shared}) == 3


def test_a_secret_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RendezvousError, match="PACELINE_SECRET has 3 characters; take 16 or more"):
        find_secret(None, "127.0.0.1", {SECRET_VARIABLE: "abc"})
    make_secret(tmp_path)
    os.chmod(tmp_path / "secret", 0o644)
    with pytest.raises(RendezvousError, match="others can read or have made"):
        find_secret(tmp_path, "127.0.0.1", {})


def meet(ranks: list[Rendezvous]) -> list[BaseException | None]:
    errors: list[BaseException | None] = [None] * len(ranks)

    def join(index: int) -> None:
        try:
            ranks[index].join()
            ranks[index].gather("card", b"x")
        except RendezvousError as error:
            errors[index] = error

    threads = [threading.Thread(target=join, args=(index,)) for index in range(len(ranks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_ranks_of_one_secret_meet_and_their_token_is_not_in_the_store() -> None:
    port = free_port()
    ranks = [Rendezvous(rank, 2, port=port, timeout_s=10, secret=RunSecret(KEY)) for rank in range(2)]
    assert meet(ranks) == [None, None]
    assert ranks[0].token == ranks[1].token
    assert ranks[0].start_name.encode() not in ranks[0].token
    for rank in reversed(ranks):
        rank.leave()
        rank.close(0.1)


def test_a_rank_with_another_secret_is_refused() -> None:
    port = free_port()
    ranks = [Rendezvous(rank, 2, port=port, timeout_s=3, secret=RunSecret(bytes([rank]) * 16)) for rank in range(2)]
    errors = meet(ranks)
    assert "was not written by a rank of this run" in str(errors[1])
    for rank in reversed(ranks):
        rank.close(0.1)


def test_a_card_that_another_process_rewrites_is_refused() -> None:
    """It could name a socket of its own, and be sent the first message with the token."""
    port = free_port()
    ranks = [Rendezvous(rank, 2, port=port, timeout_s=10, secret=RunSecret(KEY)) for rank in range(2)]
    assert meet(ranks) == [None, None]
    card = msgspec.msgpack.encode(["tcp://127.0.0.1:1"])
    stranger = PrefixStore(f"paceline/{ranks[0].start_name}", ranks[0]._opened())

    def rewrite() -> None:
        stranger.wait(["address/1"])
        stranger.set("address/1", card.hex())

    ranks[1]._put(ranks[1].store, "address/1", b"ipc:///right", ranks[1].start_name)
    rewrite()
    with pytest.raises(RendezvousError, match=r"'.*/address/1' was not written by a rank of this run"):
        ranks[0].gather("address", b"ipc:///mine")
    for rank in reversed(ranks):
        rank.leave()
        rank.close(0.1)
