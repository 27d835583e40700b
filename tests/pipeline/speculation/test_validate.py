"""What a language topology asks for: a broken one for every check, with the exact lines that it prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from paceline.pipeline.load import check_topology, load_topology

TOPOLOGIES = Path(__file__).parents[3] / "topologies"
TEXT = """\
name: text
workload: language
speculation: {drafter: model, hedge: 2}
groups: {small: {ranks: 1}, large: {ranks: 2}}
stages:
  draft: {kind: draft, group: small}
  verify: {kind: verify, group: large}
edges:
  - {from: draft, to: verify, via: zmq}
  - {from: verify, to: draft, via: zmq}
  - {from: verify, to: verify, via: zmq}
"""
# name: ([(old, new), ...], expected lines without the file)
CASES: dict[str, tuple[Sequence[tuple[str, str]], Sequence[str]]] = {
    "drafter and verifier on one group": (
        [("kind: draft, group: small", "kind: draft, group: large"), ("small: {ranks: 1}, ", "")],
        ["6: stages.draft.group: is that of 'verify'; give the drafter a group of its own"],
    ),
    "two drafters": (
        [("small: {ranks: 1}", "small: {ranks: 2}")],
        ["4: groups.small.ranks: has 2 ranks, and the drafter runs on one; write ranks: 1"],
    ),
    "no way for verdicts": (
        [("  - {from: verify, to: draft, via: zmq}\n", "")],
        [
            "8: edges: nothing goes from verify to draft; add {from: verify, to: draft, via: zmq}, which carries "
            "verdicts"
        ],
    ),
    "no way for windows": (
        [("  - {from: draft, to: verify, via: zmq}\n", "")],
        ["8: edges: nothing goes from draft to verify; add {from: draft, to: verify, via: zmq}, which carries windows"],
    ),
    "no way between the runs of layers": (
        [("  - {from: verify, to: verify, via: zmq}\n", "")],
        [
            "8: edges: nothing goes from verify to verify; add {from: verify, to: verify, via: zmq}, which carries "
            "hidden states between its ranks"
        ],
    ),
    "a ring of one": (
        [("large: {ranks: 2}", "large: {ranks: 1}")],
        ["11: edges.2: joins the ranks of a group that has one; remove this edge"],
    ),
    "KV between them": (
        [
            (
                "to: verify, via: zmq}\n  - {from: verify, to: draft",
                "to: verify, via: zmq, carries: kv}\n  - {from: verify, to: draft",
            )
        ],
        ["9: edges.0.carries: has no meaning in workload language; remove it; only workload world takes it"],
    ),
    "a local edge": (
        [("{from: verify, to: verify, via: zmq}", "{from: verify, to: verify}")],
        ["11: edges.2.via: local can't carry what goes between ranks; use dist or zmq"],
    ),
    "a deadline": (
        [("workload: language\n", "workload: language\ndeadline_ms: 40\n")],
        ["3: deadline_ms: has no meaning in workload language; remove it; only workloads world and sleep take it"],
    ),
    "a schedule": (
        [("workload: language\n", "workload: language\nschedule: mirrored\n")],
        ["3: schedule: has no meaning in workload language; remove it; only workloads world and sleep take it"],
    ),
    "no verifier": (
        [("  verify: {kind: verify, group: large}\n", ""), ("large: {ranks: 2}", "large: {ranks: 1}")],
        [],
    ),
}


def lines(text: str, folder: Path) -> list[str]:
    file = folder / "t.yaml"
    file.write_text(text)
    return [str(problem).removeprefix(f"{file}:") for problem in check_topology(file)[1]]


def test_the_text_that_is_broken_below_is_right(tmp_path: Path) -> None:
    assert lines(TEXT, tmp_path) == []


@pytest.mark.parametrize("name", [name for name, (_, expected) in CASES.items() if expected])
def test_what_it_prints(name: str, tmp_path: Path) -> None:
    changes, expected = CASES[name]
    text = TEXT
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    assert lines(text, tmp_path) == list(expected)


def test_a_verifier_is_needed(tmp_path: Path) -> None:
    text = TEXT
    for old, new in CASES["no verifier"][0]:
        text = text.replace(old, new)
    found = lines(text, tmp_path)
    assert any("verify" in line and line.startswith("5: stages: ") for line in found), found


def test_a_stage_of_another_workload_is_refused(tmp_path: Path) -> None:
    text = TEXT.replace("  verify: {", "  nap: {kind: sleep, group: small}\n  verify: {")
    assert any("stages.nap.kind" in line for line in lines(text, tmp_path))
    world = (TOPOLOGIES / "world-1.yaml").read_text().replace("stages:\n", "stages:\n  d: {kind: draft, group: g}\n")
    assert any("stages.d.kind" in line for line in lines(world, tmp_path))


@pytest.mark.parametrize(
    ("setting", "right"),
    [
        ("speculation.window=65", "auto"),
        ("speculation.window=-1", "auto"),
        ("speculation.depth=0", "auto"),
        ("speculation.hedge=many", "auto"),
        ("speculation.coupling=nucleus", "gumbel"),
        ("speculation.policy=hope", "redraft"),
        ("speculation.drafter=", "text"),
        ("speculation.options=3", "a mapping from names to numbers, texts"),
        ("speculation.options.longest=[1]", "a number, text, true or false"),
        ("speculation.patience_ms=0", "0"),
        ("speculation.gamma=4", "speculation"),
    ],
)
def test_a_wrong_value_is_named_with_what_would_be_right(setting: str, right: str) -> None:
    problems = check_topology(TOPOLOGIES / "speculate-2.yaml", [setting])[1]
    assert len(problems) == 1
    assert str(problems[0]).startswith(f"--set {setting.partition('=')[0]}: ")
    assert right in str(problems[0])


@pytest.mark.parametrize("value", ["0", "7", "auto"])
def test_numbers_and_auto_are_taken(value: str) -> None:
    topology = load_topology(
        TOPOLOGIES / "speculate-3.yaml", [f"speculation.window={value}", f"speculation.hedge={value}"]
    )
    assert str(topology.speculation.window) == str(topology.speculation.hedge) == value
