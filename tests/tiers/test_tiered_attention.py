from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from paceline.tiers.attention import Attended
from paceline.tiers.layout import Layout
from paceline.tiers.manager import TierManager
from paceline.tiers.metrics import OmittedMass
from paceline.tiers.paged_kv import PagedKV
from paceline.tiers.settings import Mode
from tests.tiers.managers import manager_of

LAYOUT = Layout(layers=1, heads=2, block_size=4, head_dim=16)
LENGTH = 128


def peaked(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries `[4, n, 16]`, keys and values `[2, n, 16]`: blocks of keys lie close together, far from other blocks, and
    each query looks for one of them."""
    made = torch.Generator().manual_seed(seed)
    blocks = LENGTH // LAYOUT.block_size
    centres = 4 * torch.nn.functional.normalize(torch.randn(2, blocks, 1, 16, generator=made), dim=3)
    keys = (centres + 0.1 * torch.randn(2, blocks, 4, 16, generator=made)).flatten(1, 2)
    values = torch.randn(2, LENGTH, 16, generator=made)
    which = torch.randint(0, 20, (LENGTH,), generator=made)
    queries = 4 * centres[:, which, 0].repeat_interleave(2, dim=0)
    return queries, keys, values


def decode(manager: TierManager, data: tuple[Tensor, Tensor, Tensor], first: int = 80) -> list[Tensor]:
    queries, keys, values = data
    kv, outs = PagedKV(manager), []
    for start, stop in [(0, first), *((p, p + 1) for p in range(first, LENGTH))]:
        kv.reserve(stop)
        kv.write(0, start, keys[:, start:stop], values[:, start:stop])
        outs.append(kv.attend(0, queries[:, start:stop], start, 1.0)[0])
        kv.length = stop
        manager.step()
    kv.close()
    return outs


class Watched(OmittedMass):
    """Remembers every call."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Attended] = []

    def take(self, attended: Attended) -> None:
        super().take(attended)
        self.found.append(attended)


def run(data: tuple[Tensor, Tensor, Tensor], hbm: int = 8, path: Path | None = None, **settings: Any) -> Any:
    nvme, dram = (200, 4) if path else (0, 200)
    with manager_of(hbm, dram, nvme, path, LAYOUT, asynchronous=False, **settings) as manager:
        watched = Watched()
        manager._tally.omission = watched
        return decode(manager, data), manager.statistics(), watched.found


@pytest.mark.parametrize("nvme", [False, True])
@pytest.mark.parametrize("epsilon", [0.001, 0.05, 0.5])
def test_certified_leaves_out_no_more_than_it_proves(epsilon: float, nvme: bool, tmp_path: Path) -> None:
    path = tmp_path if nvme else None
    data = peaked(0)
    exact, _, _ = run(data, 200)
    outs, statistics, found = run(data, path=path, mode=Mode.certified, epsilon=epsilon, refresh=2)
    largest = float(data[2].norm(dim=2).max())
    for a, b in zip(exact, outs, strict=True):
        # Leaving out a share e moves the mean of values by at most 2 e times the largest of them.
        assert float((a - b).norm(dim=2).max()) <= 2 * epsilon * largest + 1e-4
    audits = [attended for attended in found if attended.omitted is not None]
    assert len(audits) > 20
    for attended in audits:
        assert attended.bound is not None
        assert attended.omitted is not None
        assert attended.omitted[0] <= attended.bound + 1e-6 <= epsilon + 2e-6
    # It has to be of some use, too.
    assert statistics["skipped"] > 0.3 * statistics["lookups"]


def test_certified_reads_everything_where_nothing_can_be_proven() -> None:
    made = torch.Generator().manual_seed(1)
    data = tuple(0.1 * torch.randn(heads, LENGTH, 16, generator=made) for heads in (4, 2, 2))
    exact, _, _ = run(data, 200)  # type: ignore[arg-type]
    outs, statistics, _ = run(data, mode=Mode.certified, epsilon=0.001)  # type: ignore[arg-type]
    for a, b in zip(exact, outs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert statistics["skipped"] == 0


def test_certified_sees_keys_that_change(tmp_path: Path) -> None:
    """A block that was summarised, truncated and written anew has another summary."""
    data = peaked(2)
    queries, keys, values = data
    with manager_of(
        8, 200, layout=LAYOUT, mode=Mode.certified, epsilon=0.01, asynchronous=False, refresh=50
    ) as manager:
        kv = PagedKV(manager)

        def forward(start: int, stop: int, shift: float) -> Tensor:
            kv.reserve(stop)
            kv.write(0, start, keys[:, start:stop] * shift, values[:, start:stop])
            out = kv.attend(0, queries[:, start:stop], start, 1.0)[0]
            kv.length = stop
            manager.step()
            return out

        forward(0, 120, 0.0)
        forward(120, 121, 0.0)
        kv.length = 4
        forward(4, 120, 1.0)
        for position in range(120, LENGTH):
            out = forward(position, position + 1, 1.0)
            seen = torch.arange(LENGTH) <= position
            k = torch.cat([keys[:, :4] * 0, keys[:, 4:]], dim=1).repeat_interleave(2, dim=0)
            weights = torch.softmax((queries[:, position] * 1.0)[:, None] @ k[:, seen].transpose(1, 2), dim=2)
            expected = weights @ values.repeat_interleave(2, dim=0)[:, seen]
            assert float((out - expected).norm(dim=2).max()) <= 2 * 0.01 * float(values.norm(dim=2).max()) + 1e-4
        assert manager.statistics()["skipped"]


def test_profiled_skips_what_had_no_mass_and_measures_what_it_misses() -> None:
    queries, keys, values = peaked(3)
    # All look for what the last of the prompt looks for: the profile is right.
    steady = queries[:, 79:80].expand(-1, LENGTH, -1)
    exact, _, _ = run((steady, keys, values), 200)
    outs, statistics, found = run((steady, keys, values), mode=Mode.profiled, epsilon=0.05, refresh=4)
    audits = [attended.omitted for attended in found if attended.omitted is not None]
    assert len(audits) > 10
    assert max(largest for largest, _ in audits[4:]) < 0.06
    assert statistics["skipped"] > 0.3 * statistics["lookups"]
    torch.testing.assert_close(outs[-2], exact[-2], atol=0.3, rtol=0)
    # They jump about: the profile is wrong, and says so.
    _, statistics, _ = run((queries, keys, values), mode=Mode.profiled, epsilon=0.05, refresh=4)
    assert statistics["omitted_mass"]["max"] > 0.5


@pytest.mark.parametrize("nvme", [False, True])
@pytest.mark.parametrize(("bits", "error"), [(8, 0.05), (4, 0.5), (2, 2.0)])
def test_lossy_formats_are_near(bits: int, error: float, nvme: bool, tmp_path: Path) -> None:
    made = torch.Generator().manual_seed(4)
    data = tuple(torch.randn(heads, LENGTH, 16, generator=made) for heads in (4, 2, 2))
    exact, _, _ = run(data, 200)  # type: ignore[arg-type]
    outs, statistics, _ = run(data, path=tmp_path if nvme else None, bits=bits)  # type: ignore[arg-type]
    off = max(float((a - b).abs().max()) for a, b in zip(exact, outs, strict=True))
    assert 0 < off < error
    assert 0 < statistics["packing_error"]["max"] < {8: 0.01, 4: 0.1, 2: 0.5}[bits]


def test_certified_and_lossy_do_not_go_together() -> None:
    with pytest.raises(ValueError, match="certified proves"), manager_of(8, mode=Mode.certified, bits=8):
        pass


def test_nonsense_in_one_session_does_not_stop_packing() -> None:
    with manager_of(8, 200, layout=LAYOUT, bits=4) as manager:
        bad = PagedKV(manager)
        bad.reserve(48)
        nonsense = torch.full((2, 48, 16), float("nan"))
        nonsense[:, ::2] = float("-inf")
        bad.write(0, 0, nonsense, nonsense)
        bad.length = 48
        decode(manager, peaked(0))
        assert manager.statistics()["hits"]["dram"]  # type: ignore[index]
