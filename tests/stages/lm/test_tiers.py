"""A decoder over memory tiers computes what one with all its KV in hbm does, at any budget; what is lost is computed
again or fails by its own name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.pipeline.tiers import NvmeSpec, TierMode, TierSpec
from paceline.stages.lm.decoder import Decoder
from paceline.stages.lm.rank_tiers import RankTiers
from paceline.stages.lm.sequence_kv import SequenceError
from paceline.stages.lm.tiered_kv import TieredKV
from paceline.tiers.policies import ONLINE
from paceline.tiers.settings import Tier

from .conftest import Saved
from .memory_models import save_memory
from .models import tokens

LENGTH = 100
BLOCK = 512
"""Bytes of a block of four tokens: two heads of eight float32, keys and values."""
LAYERS = 3
EVERYTHING = TierSpec(hbm=1 << 20, block_size=4)


@contextmanager
def tiered(
    saved: Saved, spec: TierSpec, rows: int | None = None, layers: tuple[int, int] | None = None
) -> Iterator[Decoder]:
    decoder = Decoder.load(saved.folder, rows=rows, layers=layers, tiers=RankTiers(spec, "test"))
    assert decoder.tiers is not None
    try:
        yield decoder
    finally:
        decoder.tiers.close()


def small(folder: Path, hbm: int = 2 * LAYERS, dram: int = 0, nvme: int = 2000, **more: object) -> TierSpec:
    """Budgets in blocks."""
    spec = {"hbm": hbm * BLOCK, "dram": dram * BLOCK, "block_size": 4} | more
    return TierSpec(nvme=NvmeSpec(path=folder, size=nvme * 4096) if nvme else None, **spec)  # type: ignore[arg-type]


def tiers_of(decoder: Decoder) -> TieredKV:
    assert decoder.tiers is not None
    return decoder.tiers


# -- any budget --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(llama: Saved) -> torch.Tensor:
    """Logits without tiers."""
    decoder = Decoder.load(llama.folder)
    return decoder.forward([(decoder.open(), tokens(LENGTH))])[0]


@pytest.fixture(scope="module")
def tiled(llama: Saved, plain: torch.Tensor) -> torch.Tensor:
    """Logits with everything in hbm, in tiles of five rows."""
    with tiered(llama, EVERYTHING, rows=5) as decoder:
        logits = decoder.forward([(decoder.open(), tokens(LENGTH))])[0]
    torch.testing.assert_close(logits, plain, atol=2e-5, rtol=0)
    return logits


@given(
    hbm=st.integers(2 * LAYERS, 30), dram=st.integers(0, 40), nvme=st.booleans(), rows=st.sampled_from([5, None]),
    policy=st.sampled_from(ONLINE), refresh=st.integers(1, 9), data=st.data(),
)  # fmt: skip
@settings(max_examples=8, deadline=None)
def test_any_budget_policy_and_history_gives_the_same(
    llama: Saved, tiled: torch.Tensor, plain: torch.Tensor, tmp_path_factory: pytest.TempPathFactory, hbm: int,
    dram: int, nvme: bool, rows: int | None, policy: str, refresh: int, data: st.DataObject,
) -> None:  # fmt: skip
    """Windows of tokens beside another sequence, drafts that are rolled back, and forks that share blocks."""
    dram = dram if nvme else 400
    folder = tmp_path_factory.mktemp("kv")
    spec = small(folder, hbm, dram, 2000 if nvme else 0, policy=policy, refresh=refresh)
    with tiered(llama, spec, rows) as decoder:
        sequence, beside = decoder.open(), decoder.open()
        at = 0
        while at < LENGTH:
            count = min(LENGTH - at, data.draw(st.sampled_from([1, 3, 7, 40])))
            match data.draw(st.sampled_from(["nothing", "rollback", "fork"])):
                case "rollback" if at + 6 <= LENGTH:
                    decoder.forward([(sequence, tokens(6, seed=9))])
                    decoder.truncate(sequence, at)
                case "fork":
                    old, sequence = sequence, decoder.fork(sequence, at)
                    decoder.forward([(old, tokens(3, seed=8))])
                    decoder.close(old)
            window = tokens(LENGTH)[at : at + count]
            logits = decoder.forward([(beside, tokens(1)), (sequence, window)])[1]
            if rows is None:
                torch.testing.assert_close(logits, plain[at : at + count], atol=2e-5, rtol=0)
            else:
                assert torch.equal(logits, tiled[at : at + count])
            at += count
        told = tiers_of(decoder).statistics()
        assert sum(told["hits"].values()) == told["lookups"] > 0
        assert hbm > 24 or told["hits"]["dram"] + told["hits"]["nvme"] > 0
        assert told["recomputed_positions"] == 0
        for each in decoder.sequences:
            decoder.close(each)
        tiers_of(decoder).forget()
        assert sum(tiers_of(decoder).statistics()["blocks"].values()) == 0
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_other_kinds_of_models(saved: Saved, kind: str, tmp_path: Path) -> None:
    if saved.model.config.model_type != kind:
        pytest.skip("the other one")
    without = Decoder.load(saved.folder)
    expected = without.forward([(without.open(), tokens(LENGTH))])[0]
    with tiered(saved, small(tmp_path, hbm=4 * LAYERS)) as decoder:
        found = decoder.forward([(decoder.open(), tokens(LENGTH))])[0]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_a_run_behind_the_first_gives_the_same_hidden_states(llama: Saved, tmp_path: Path) -> None:
    whole = Decoder.load(llama.folder)
    expected = whole.forward([(whole.open(), tokens(60))], keep=[4])[0]
    with tiered(llama, small(tmp_path), layers=(0, 2)) as one, tiered(llama, small(tmp_path), layers=(2, 3)) as two:
        hidden = one.forward([(one.open(), tokens(60))])[0]
        assert hidden.shape == (60, one.hidden)
        found = two.forward([(two.open(), hidden)], keep=[4])[0]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("mode", [TierMode.certified, TierMode.profiled])
def test_what_is_left_out_is_counted_and_bounded(llama: Saved, mode: TierMode, tmp_path: Path) -> None:
    with tiered(llama, small(tmp_path, 12, 300, 0, mode=mode, epsilon=0.3, refresh=4)) as decoder:
        sequence = decoder.open()
        decoder.forward([(sequence, tokens(40))])
        for token in tokens(LENGTH)[40:].tolist():
            decoder.forward([(sequence, torch.tensor([token]))])
        told = tiers_of(decoder).statistics()
    assert sum(told["hits"].values()) == told["lookups"]
    assert 0 <= told["omitted_mass"]["mean"] <= told["omitted_mass"]["max"] <= 1
    if mode is TierMode.certified:
        assert told["omitted_mass"]["max"] <= 0.3
    else:
        assert told["omitted_mass"]["max"] > 0


# -- passes ------------------------------------------------------------------------------------------------------------


@given(
    room=st.integers(2, 9),
    sequences=st.lists(st.tuples(st.integers(0, 50), st.integers(1, 60)), min_size=1, max_size=8),
)
@settings(max_examples=60, deadline=None)
def test_passes_cover_everything_once_and_write_what_hbm_holds(
    llama_tiers: TieredKV, room: int, sequences: list[tuple[int, int]]
) -> None:
    llama_tiers._room = room
    lengths, counts = [list(column) for column in zip(*sequences, strict=True)]
    done = [0] * len(sequences)
    passes = list(llama_tiers.passes(lengths, counts))
    for pieces in passes:
        assert len({index for index, _ in pieces}) == len(pieces)
        written = 0
        for index, part in pieces:
            assert part.start == done[index] < part.stop
            done[index] = part.stop
            written += (lengths[index] + part.stop - 1) // 4 - (lengths[index] + part.start) // 4 + 1
        assert written <= room
    assert done == counts
    if all((length + count - 1) // 4 - length // 4 + 1 <= room // len(sequences) for length, count in sequences):
        assert len(passes) == 1


@pytest.fixture(scope="module")
def llama_tiers(llama: Saved) -> Iterator[TieredKV]:
    with tiered(llama, EVERYTHING) as decoder:
        yield tiers_of(decoder)


def test_the_history_of_a_long_run_stays_small(llama: Saved) -> None:
    with tiered(llama, EVERYTHING) as decoder:
        sequence = decoder.open()
        for _ in range(600):
            decoder.forward([(sequence, tokens(1))], keep=[1])
            if decoder.length(sequence) == LENGTH:
                decoder.truncate(sequence, 10)
        history = tiers_of(decoder).history()
    assert 60 <= len(history.steps) < 256
    assert history.steps == sorted(history.steps) and history.steps[-1] > 500
    assert len(history.looks) == len(history.steps)
    assert all(len(look) == len(history.layers) == 3 for look in history.looks)


# -- sharing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [5, None])
def test_sequences_that_begin_alike_share_blocks_until_they_part(
    llama: Saved, tiled: torch.Tensor, plain: torch.Tensor, rows: int | None
) -> None:
    with tiered(llama, EVERYTHING, rows) as decoder:
        one, two, three = (decoder.open() for _ in range(3))
        prompt = tokens(LENGTH)
        decoder.forward([(one, prompt[:50])], keep=[1])
        held = tiers_of(decoder).statistics()["blocks"]["hbm"]
        other = torch.cat([prompt[:41], tokens(20, seed=4)])
        decoder.forward([(three, other)], keep=[1])
        # Ten blocks of four tokens are common; of the rest there is one more for each layer and four tokens.
        assert tiers_of(decoder).statistics()["blocks"]["hbm"] == held + LAYERS * -(-(61 - 40) // 4)
        found = decoder.forward([(two, prompt[:60])], keep=[6])[0]
        assert tiers_of(decoder).statistics()["shared_positions"] == 40 + 48
        again = decoder.forward([(one, prompt[50:90])], keep=[30])[0]
        for got, part in ((found, slice(54, 60)), (again, slice(60, 90))):
            if rows is None:
                torch.testing.assert_close(got, plain[part], atol=2e-5, rtol=0)
            else:
                assert torch.equal(got, tiled[part])
        decoder.truncate(two, 30)
        decoder.forward([(two, tokens(10, seed=3))])
        found = decoder.forward([(one, prompt[90:])])[0]
        torch.testing.assert_close(found, plain[90:], atol=2e-5, rtol=0)


# -- losses ------------------------------------------------------------------------------------------------------------


def damage(decoder: Decoder) -> None:
    """Flip a bit of every page of the file of the nvme tier."""
    manager = tiers_of(decoder).manager
    manager.mover.drain()
    store = manager.storage.store
    assert store is not None and manager.storage.free[Tier.nvme].taken > 0
    with store.open_path.open("r+b") as file:
        size = file.seek(0, 2)
        for offset in range(4096 + 5, size, 4096):
            file.seek(offset)
            byte = file.read(1)
            file.seek(offset)
            file.write(bytes([byte[0] ^ 8]))


@pytest.mark.parametrize("rows", [5, None])
def test_lost_blocks_are_computed_again(
    llama: Saved, tiled: torch.Tensor, plain: torch.Tensor, rows: int | None, tmp_path: Path
) -> None:
    with tiered(llama, small(tmp_path), rows) as decoder:
        sequence, fork = decoder.open(), -1
        decoder.forward([(sequence, tokens(60))], keep=[1])
        fork = decoder.fork(sequence, 50)
        damage(decoder)
        for number, start in ((sequence, 60), (fork, 50)):
            found = decoder.forward([(number, tokens(LENGTH)[start:90])])[0]
            if rows is None:
                torch.testing.assert_close(found, plain[start:90], atol=2e-5, rtol=0)
            else:
                assert torch.equal(found, tiled[start:90])
            assert decoder.length(number) == 90
        told = tiers_of(decoder).statistics()
        assert told["recomputed_positions"] > 0
        assert sum(told["errors"].values()) > 0


@pytest.mark.parametrize("rows", [5, None])
def test_states_of_constant_size_are_computed_again_with_lost_kv(rows: int | None, tmp_path: Path) -> None:
    """The KV of a layer's beginning is lost, which is further back than the other layers' states can go."""
    folder = tmp_path / "model"
    save_memory(folder, ["gated_delta", "attention", "ttt_linear"])
    decoder = Decoder.load(folder, rows=rows, tiers=RankTiers(EVERYTHING, "test"))
    wanted = decoder.forward([(decoder.open(), tokens(90))])[0]
    tiers_of(decoder).close()
    decoder = Decoder.load(folder, rows=rows, tiers=RankTiers(small(tmp_path, hbm=2), "test"), rollback=8)
    try:
        sequence = decoder.open()
        for part in tokens(60).split(5):
            decoder.forward([(sequence, part)])
        damage(decoder)
        found = decoder.forward([(sequence, tokens(90)[60:])])[0]
        assert tiers_of(decoder).statistics()["recomputed_positions"] >= 60
    finally:
        tiers_of(decoder).close()
    torch.testing.assert_close(found, wanted[60:], atol=5e-5, rtol=0)
    assert rows is None or torch.equal(found, wanted[60:])


def test_a_run_that_does_not_know_the_tokens_fails_by_name_and_others_go_on(llama: Saved, tmp_path: Path) -> None:
    first = Decoder.load(llama.folder, layers=(0, 1))
    hidden = first.forward([(first.open(), tokens(60))])[0]
    whole = Decoder.load(llama.folder)
    expected = whole.forward([(whole.open(), tokens(60))], keep=[1])[0]
    with tiered(llama, small(tmp_path), layers=(1, 3)) as decoder:
        sequence = decoder.open()
        decoder.forward([(sequence, hidden[:40])], keep=[1])
        damage(decoder)
        fresh = decoder.open()
        with pytest.raises(SequenceError, match="lost") as caught:
            decoder.forward([(fresh, hidden[:3]), (sequence, hidden[40:])], keep=[1, 1])
        assert caught.value.sequence == sequence
        assert decoder.length(fresh) == 0
        decoder.close(sequence)
        found = decoder.forward([(fresh, hidden)], keep=[1])[0]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_a_sequence_that_finds_no_room_fails_by_name_and_others_go_on(llama: Saved, plain: torch.Tensor) -> None:
    with tiered(llama, TierSpec(hbm=30 * BLOCK, block_size=4)) as decoder:
        one, two = decoder.open(), decoder.open()
        decoder.forward([(one, tokens(20))])
        with pytest.raises(SequenceError, match="no tier has room") as caught:
            decoder.forward([(two, tokens(40))])
        assert (caught.value.sequence, decoder.length(two)) == (two, 0)
        decoder.close(two)
        found = decoder.forward([(one, tokens(40)[20:])])[0]
    torch.testing.assert_close(found, plain[20:40], atol=2e-5, rtol=0)
