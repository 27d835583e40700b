"""Sessions that sleep in a folder go on as if they never had, whoever takes them up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from paceline.pipeline.topology import Topology
from paceline.runtime.language.actor import LanguageActor
from paceline.runtime.language.leader import LeaderActor
from paceline.runtime.language.parked import read_parked, session_folder
from paceline.runtime.result import LanguageResult
from paceline.runtime.spec import GenerateSpec, Resumed
from tests.runtime.language.cluster import Cluster, generate, language, serial, spec_of
from tests.runtime.language.test_same_text import check_all_free
from tests.runtime.language.test_tiers import BLOCK, told

pytestmark = pytest.mark.usefixtures("read_once")

Pair = tuple[Path, Path]
PROMPTS = ("    def __init__(self, name):\n        self.name = name\n" * 3, "class", "def add(a, b):\n    return")
BEFORE, AFTER = 19, 23


def tiered(pair: Pair, verifiers: int = 1, **more: Any) -> Topology:
    tiers = {"tiers__verifier__hbm": 9 * BLOCK, "tiers__verifier__dram": 400 * BLOCK}
    keys = {"speculation__window": 3, "speculation__depth": 2, "speculation__hedge": 2}
    # However busy the machine is: a drafter that is silent is not what is tested here.
    keys["speculation__patience_ms"] = 20000
    return language(pair, verifiers, **(tiers | keys | more))


def resuming(spec: GenerateSpec, folder: Path, prompts: tuple[str, ...] | None = None, **more: Any) -> GenerateSpec:
    resumed = tuple(Resumed(each, session) for each, session in read_parked(folder))
    return replace(spec, prompts=prompts or ("",) * len(resumed), resumed=resumed, max_tokens=AFTER, **more)


def tokens(result: LanguageResult) -> list[list[int]]:
    return [text.token_ids for text in result.sessions]


def joined(first: LanguageResult, second: LanguageResult) -> list[list[int]]:
    return [a + b for a, b in zip(tokens(first), tokens(second), strict=True)]


def kv(folder: Path, number: int, rank: int) -> Path:
    """The file of a rank's KV; there is one."""
    (found,) = session_folder(folder, number).glob(f"kv-{rank}-*.parked")
    return found


def forwarded(result: LanguageResult) -> int:
    """Tokens that the first verifier put through its layers."""
    return next(report.tokens for report in result.ranks if report.role in ("verifier", "serial"))


@pytest.mark.parametrize(
    ("verifiers", "temperature", "more"),
    [
        (1, 1.0, {}),
        (2, 0.0, {"speculation__sessions": 2}),
        (3, 0.8, {"tiers__drafter__hbm": 40 * BLOCK, "tiers__drafter__dram": 400 * BLOCK}),
        (1, 1.0, {"speculation__drafter": "none", "speculation__hedge": 0}),
        (1, 0.8, {"speculation__drafter": "ngram", "speculation__hedge": 0}),
    ],
)
def test_what_comes_next_is_what_would_have_come_next(
    pair: Pair, tmp_path: Path, verifiers: int, temperature: float, more: dict[str, Any]
) -> None:
    topology = tiered(pair, verifiers, **more)
    spec = spec_of(topology, PROMPTS, BEFORE, temperature=temperature, ignore_eos=True, park=tmp_path)
    cluster = Cluster(spec)
    first = cluster.run()
    assert (first.parked, first.warnings) == ([0, 1, 2], [])
    check_all_free(cluster)
    cluster = Cluster(resuming(spec, tmp_path))
    second = cluster.run()
    assert (second.parked, second.warnings) == ([0, 1, 2], [])
    check_all_free(cluster)
    whole = serial(replace(spec, max_tokens=BEFORE + AFTER, park=None))
    assert joined(first, second) == tokens(whole)
    # Nothing of what had been computed was computed again: plainly, every token is forwarded once.
    assert told(second, "verifier")["recomputed_positions"] == 0
    if more.get("speculation__drafter") == "none":
        assert forwarded(second) == AFTER * len(PROMPTS)
    third = generate(resuming(spec, tmp_path, park=None))
    longer = serial(replace(spec, max_tokens=BEFORE + 2 * AFTER, park=None))
    assert [a + b for a, b in zip(joined(first, second), tokens(third), strict=True)] == tokens(longer)


@pytest.mark.parametrize("first_serial", [False, True])
def test_the_serial_reference_and_the_pipeline_take_up_each_others_sessions(
    pair: Pair, tmp_path: Path, first_serial: bool
) -> None:
    spec = spec_of(tiered(pair), PROMPTS, BEFORE, park=tmp_path, ignore_eos=True)
    ways = [serial, generate] if first_serial else [generate, serial]
    first = ways[0](spec)
    second = ways[1](resuming(spec, tmp_path, park=None))
    assert second.warnings == []
    assert joined(first, second) == tokens(serial(replace(spec, max_tokens=BEFORE + AFTER, park=None)))


@pytest.mark.parametrize("verifiers", [1, 2])
def test_a_prompt_goes_on_from_a_parked_session(pair: Pair, tmp_path: Path, verifiers: int) -> None:
    spec = spec_of(tiered(pair, verifiers), PROMPTS[:2], BEFORE, park=tmp_path, stop=("e", "\n"))
    first = generate(spec)
    reasons = {text.finish_reason for text in first.sessions}
    assert "stop" in reasons
    more = ("\n\ndef later():", "x")
    found = generate(resuming(spec, tmp_path, more, park=None, stop=()))
    # A session that begins with all those tokens, and has computed none of them.
    anew = resuming(spec, tmp_path, more, park=None, stop=())
    parked = [replace(each, folder=tmp_path / "none") for each in anew.resumed]
    assert tokens(found) == tokens(serial(replace(anew, resumed=tuple(parked))))
    assert found.warnings == []


def test_damaged_kv_is_computed_again_where_the_tokens_are_known(pair: Pair, tmp_path: Path) -> None:
    spec = spec_of(tiered(pair), PROMPTS, BEFORE, park=tmp_path, ignore_eos=True)
    first = generate(spec)
    whole = tokens(serial(replace(spec, max_tokens=BEFORE + AFTER, park=None)))
    damaged, missing, swapped = (kv(tmp_path, number, 0) for number in range(3))
    data = bytearray(damaged.read_bytes())
    data[-50] ^= 4
    damaged.write_bytes(data)
    missing.unlink()
    second = generate(resuming(spec, tmp_path, park=None))
    assert joined(first, second) == whole
    causes = {warning.split(":")[0]: warning for warning in second.warnings}
    assert list(causes) == [f"session {number} was computed again on rank 1" for number in (0, 1)]
    assert "CRC-32C" in causes["session 0 was computed again on rank 1"]
    swapped.write_bytes(data)
    data[-50] ^= 4
    swapped.write_bytes(data)
    third = generate(resuming(spec, tmp_path, park=None))
    assert joined(first, third) == whole
    assert any("session 2" in warning and "KV of another text" in warning for warning in third.warnings)


@pytest.mark.parametrize("rank", [1, 2])
def test_damaged_kv_behind_the_first_run_fails_its_session_alone(pair: Pair, tmp_path: Path, rank: int) -> None:
    spec = spec_of(tiered(pair, 3), PROMPTS, BEFORE, park=tmp_path, ignore_eos=True)
    first = generate(spec)
    kv(tmp_path, 1, rank).unlink()
    cluster = Cluster(resuming(spec, tmp_path, park=tmp_path / "again"))
    second = cluster.run()
    check_all_free(cluster)
    whole = tokens(serial(replace(spec, max_tokens=BEFORE + AFTER, park=None)))
    found = joined(first, second)
    assert [found[0], found[2]] == [whole[0], whole[2]]
    assert (second.sessions[1].finish_reason, second.sessions[1].token_ids) == ("failed", [])
    assert second.parked == [0, 2]
    assert len(second.warnings) == 1 and f"session 1 failed on rank {rank + 1}" in second.warnings[0]
    # Those that can be taken up keep their numbers.
    assert [session.number for _, session in read_parked(tmp_path / "again")] == [0, 2]


def test_parking_that_fails_on_one_rank_leaves_the_session_as_it_was(pair: Pair, tmp_path: Path) -> None:
    spec = spec_of(tiered(pair, 2), PROMPTS, BEFORE, park=tmp_path, ignore_eos=True)
    first = generate(spec)
    before = [session.tokens for _, session in read_parked(tmp_path)]

    def no_room(actor: LanguageActor) -> None:
        if actor.rank == actor.roles.last and actor.tiers is not None:
            manager = actor.tiers.manager
            manager.settings = replace(manager.settings, watermark=1 << 60)

    cluster = Cluster(resuming(spec, tmp_path), no_room)
    second = cluster.run()
    check_all_free(cluster)
    assert second.parked == []
    assert sorted(warning.split(":")[0] for warning in second.warnings) == [
        f"session {number} could not be parked on rank 2" for number in range(3)
    ]
    assert [session.tokens for _, session in read_parked(tmp_path)] == before
    third = generate(resuming(spec, tmp_path))
    assert tokens(third) == tokens(second)
    assert (third.parked, third.warnings) == ([0, 1, 2], [])
    # What the run that failed has left is gone with the next that did not.
    assert len(list(tmp_path.glob("*/kv-*.parked"))) == 2 * 3
    assert joined(first, third) == tokens(serial(replace(spec, max_tokens=BEFORE + AFTER, park=None)))


def test_a_session_that_is_cancelled_at_once_is_not_parked_and_others_are(pair: Pair, tmp_path: Path) -> None:
    spec = spec_of(tiered(pair, 2, speculation__chunk=8), PROMPTS, BEFORE, park=tmp_path, ignore_eos=True)

    def cancel(actor: LanguageActor) -> None:
        if isinstance(actor, LeaderActor):
            admit = actor._admit

            def admitted() -> bool:
                joined = admit()
                actor.cancel(0)
                return joined

            actor._admit = admitted  # type: ignore[method-assign]

    cluster = Cluster(spec, cancel)
    result = cluster.run()
    check_all_free(cluster)
    assert result.sessions[0].finish_reason == "cancelled"
    assert (result.parked, result.warnings) == ([1, 2], [])


def test_a_disk_that_can_not_be_written_costs_the_parking_alone(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "session-1").write_text("in the way")
    spec = spec_of(tiered(pair), PROMPTS, BEFORE, park=tmp_path)
    found = generate(spec)
    assert tokens(found) == tokens(serial(replace(spec, park=None)))
    assert found.parked == [0, 2]
    assert len(found.warnings) == 1 and "session 1 could not be parked on rank" in found.warnings[0]


@pytest.mark.parametrize("way", [serial, generate])
def test_the_text_goes_on_within_a_character(pair: Pair, tmp_path: Path, way: Any) -> None:
    """Wherever it is parked, the pieces make the text of a session that never was."""
    topology = tiered(pair)
    prompts = tuple(f"{prompt}{end}" for prompt in PROMPTS for end in ("", " ", "é", "\n", "(", "東"))
    whole = serial(spec_of(topology, prompts, 9, ignore_eos=True)).sessions
    held = 0
    for before in (2, 3, 4):
        folder = tmp_path / str(before)
        spec = spec_of(topology, prompts, before, park=folder, ignore_eos=True)
        first = way(spec).sessions
        second = way(replace(resuming(spec, folder, park=None), max_tokens=9 - before)).sessions
        assert [a.text + b.text for a, b in zip(first, second, strict=True)] == [text.text for text in whole]
        alone = serial(replace(spec, park=None)).sessions
        held += sum(a.text != b.text for a, b in zip(first, alone, strict=True))
    # Some were cut within a character, so the equality above says something.
    assert held > 3
