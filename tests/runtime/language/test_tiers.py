"""Drafts in flight over memory tiers: the text of the run that has all its KV in hbm, whatever lies where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paceline.runtime.language.actor import LanguageActor
from paceline.runtime.result import LanguageResult
from tests.runtime.language.cluster import Cluster, generate, language, serial, spec_of, texts
from tests.runtime.language.test_same_text import check_all_free

pytestmark = pytest.mark.usefixtures("read_once")

Pair = tuple[Path, Path]
PROMPTS = ("    def __init__(self, name):\n        self.name = name\n" * 5, "class", "def add(a, b):\n    return")
BLOCK = 2 * 2 * 16 * 8 * 4
"""Bytes: keys and values, two heads, sixteen tokens, eight float32."""


def tiers(
    folder: Path, hbm: int, dram: int, nvme: bool = True, groups: str = "verifier", **more: Any
) -> dict[str, Any]:
    """Settings, with budgets in blocks."""
    found: dict[str, Any] = {}
    for group in groups.split():
        found |= {f"tiers__{group}__hbm": hbm * BLOCK, f"tiers__{group}__dram": dram * BLOCK}
        if nvme:
            found[f"tiers__{group}__nvme"] = {"path": str(folder), "size": "16MiB"}
        found |= {f"tiers__{group}__{key}": value for key, value in more.items()}
    return found


def told(result: LanguageResult, role: str) -> dict[str, Any]:
    return next(report.tiers for report in result.ranks if report.role == role and report.tiers is not None)


CASES = [
    # verifiers, hbm and dram in blocks, nvme, groups, deterministic, temperature, more
    (1, 6, 0, True, "verifier", True, 1.0, {}),
    (1, 6, 0, True, "verifier drafter", False, 0.0, {"policy": "lru"}),
    (2, 4, 3, True, "verifier", True, 0.0, {"policy": "window"}),
    (1, 9, 12, True, "drafter", True, 1.0, {"mode": "profiled", "epsilon": 0.2}),
    (3, 8, 400, False, "verifier", False, 1.0, {"policy": "heavy-hitter", "refresh": 1}),
    (1, 5, 4, True, "verifier drafter", True, 0.7, {"bandwidth": BLOCK, "hysteresis": 0.0, "block_size": 8}),
]


@pytest.mark.parametrize(("verifiers", "hbm", "dram", "nvme", "groups", "deterministic", "temperature", "more"), CASES)
def test_any_budget_gives_the_same_text(
    pair: Pair, tmp_path: Path, verifiers: int, hbm: int, dram: int, nvme: bool, groups: str, deterministic: bool,
    temperature: float, more: dict[str, Any],
) -> None:  # fmt: skip
    keys = {"speculation__window": 4, "speculation__depth": 2, "speculation__hedge": 3, "deterministic": deterministic,
            "speculation__patience_ms": 20000}  # fmt: skip
    most = tiers(tmp_path, hbm + 3 * hbm * ("drafter" in groups), dram, nvme, groups, **more)
    spec = spec_of(language(pair, verifiers, **keys, **most), PROMPTS, 24, temperature=temperature, ignore_eos=True)
    without = spec_of(language(pair, verifiers, **keys), PROMPTS, 24, temperature=temperature, ignore_eos=True)
    cluster = Cluster(spec)
    result = cluster.run()
    assert texts(result) == texts(serial(without))
    assert result.warnings == []
    for role in groups.split():
        found = told(result, role)
        assert sum(found["hits"].values()) == found["lookups"] > 0
        assert found["hits"]["dram"] + found["hits"]["nvme"] > 0
        assert found["moved_bytes"] > 0
        assert found["errors"] == {}
    check_all_free(cluster)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("mode", "epsilon"), [("certified", 0.4), ("profiled", 0.4)])
def test_approximations_say_what_they_left_out(pair: Pair, tmp_path: Path, mode: str, epsilon: float) -> None:
    keys = tiers(tmp_path, 9, 200, False, mode=mode, epsilon=epsilon, refresh=4) | {"deterministic": False}
    result = generate(spec_of(language(pair, **keys), PROMPTS, 30, ignore_eos=True))
    assert [text.finish_reason for text in result.sessions] == ["length"] * 3
    found = told(result, "verifier")
    assert sum(found["hits"].values()) == found["lookups"] > 0
    assert 0 <= found["omitted_mass"]["mean"] <= found["omitted_mass"]["max"]
    if mode == "certified":
        assert found["omitted_mass"]["max"] <= epsilon


def test_the_serial_reference_has_tiers_too(pair: Pair, tmp_path: Path) -> None:
    without = spec_of(language(pair), PROMPTS, 40)
    result = serial(spec_of(language(pair, **tiers(tmp_path, 6, 0)), PROMPTS, 40))
    assert texts(result) == texts(serial(without))
    assert told(result, "serial")["hits"]["nvme"] > 0
    history = result.ranks[0].history
    assert history is not None and {1, 3} <= set(b"".join(layer for look in history.looks for layer in look))


@pytest.mark.parametrize("verifiers", [1, 2])
def test_a_session_that_finds_no_room_fails_by_name_and_others_go_on(pair: Pair, verifiers: int) -> None:
    layers = 3 if verifiers == 1 else 2
    keys = {f"tiers__verifier__{tier}": 6 * layers * BLOCK for tier in ("hbm", "dram")}
    keys |= {"speculation__window": 3, "speculation__depth": 2, "deterministic": False, "speculation__sessions": 2}
    prompts = [PROMPTS[1], PROMPTS[0] * 3, PROMPTS[2]]
    without = spec_of(language(pair, verifiers), prompts, 20, ignore_eos=True)
    cluster = Cluster(spec_of(language(pair, verifiers, **keys), prompts, 20, ignore_eos=True))
    result = cluster.run()
    found, expected = texts(result), texts(serial(without))
    assert found[0] == expected[0] and found[2] == expected[2]
    assert found[1] == ("", [], "failed")
    assert any("session 1 failed on rank" in warning and "raise the budgets" in warning for warning in result.warnings)
    check_all_free(cluster)


def test_a_session_that_fails_between_the_first_and_the_last_run_leaves_others_alone(pair: Pair) -> None:
    keys = {"tiers__verifier__hbm": 6 * BLOCK, "tiers__verifier__dram": 400 * BLOCK}
    keys |= {"speculation__window": 3, "speculation__depth": 3, "deterministic": False, "speculation__sessions": 2}
    prompts = [PROMPTS[1], PROMPTS[0] * 3, PROMPTS[2]]
    without = spec_of(language(pair, 3), prompts, 20, ignore_eos=True)

    def fill(actor: LanguageActor) -> None:
        if actor.rank == actor.roles.verifiers[1] and actor.tiers is not None:
            other = actor.tiers.manager.open()
            for number in range(396):
                actor.tiers.manager.allocate(other, 0, 16 * number)

    cluster = Cluster(spec_of(language(pair, 3, **keys), prompts, 20, ignore_eos=True), fill)
    result = cluster.run()
    found, expected = texts(result), texts(serial(without))
    assert found[0] == expected[0] and found[2] == expected[2]
    assert found[1] == ("", [], "failed")
    middle = cluster.spec.topology.world_size - 2
    assert [warning.split(":")[0] for warning in result.warnings] == [f"session 1 failed on rank {middle}"]
    check_all_free(cluster)
