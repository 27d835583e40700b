"""The `tiers` section: what it takes, what is wrong with it, and how `--set` reaches it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from paceline.pipeline.load import check_topology, load_topology
from paceline.pipeline.tiers import NvmeSpec, TierMode, TierSpec

TOPOLOGIES = Path(__file__).parents[2] / "topologies"
PLAIN, TIERED = TOPOLOGIES / "speculate-2.yaml", TOPOLOGIES / "speculate-2-tiers.yaml"
WORLD, SLEEP = TOPOLOGIES / "world-2.yaml", TOPOLOGIES / "sleep-4.yaml"

LANGUAGE = """\
name: text
workload: language
groups: {a: {}, b: {}}
stages:
  draft: {kind: draft, group: a}
  verify: {kind: verify, group: b}
edges:
  - {from: draft, to: verify, via: zmq}
  - {from: verify, to: draft, via: zmq}
tiers:
"""


def problems(path: Path, *settings: str) -> list[str]:
    return [str(problem).replace(str(path), "FILE") for problem in check_topology(path, settings)[1]]


def test_what_the_shipped_topology_says() -> None:
    spec = load_topology(TIERED).tiers["verifier"]
    assert spec == TierSpec(
        hbm=2 << 20, dram=8 << 20, nvme=NvmeSpec(path=spec.nvme.path if spec.nvme else Path(), size=64 << 20)
    )
    assert (spec.policy, spec.mode, spec.bits) == ("attention-mass", TierMode.exact, None)


def test_set_reaches_every_key_also_where_the_file_has_no_tiers(tmp_path: Path) -> None:
    settings = ["hbm=64MiB", "dram=0", f"nvme.path={tmp_path}", "nvme.size=2GB", "policy=lru", "mode=certified",
                "epsilon=0.2", "bits=4", "block_size=32", "refresh=3", "bandwidth=1MiB", "hysteresis=0"]  # fmt: skip
    for path in (PLAIN, TIERED):
        spec = load_topology(path, [f"tiers.verifier.{setting}" for setting in settings]).tiers["verifier"]
        assert spec == TierSpec(
            hbm=64 << 20, dram=0, nvme=NvmeSpec(path=tmp_path, size=2 * 10**9), policy="lru",
            mode=TierMode.certified, epsilon=0.2, bits=4, block_size=32, refresh=3, bandwidth=1 << 20, hysteresis=0.0,
        )  # fmt: skip
    assert load_topology(WORLD, ["tiers.late.hbm=1MiB", "tiers.early.hbm=2MiB"]).tiers["early"].hbm == 2 << 20


SIZE = "in bytes or with a unit, such as 4096, 64KiB or 1.5MiB"
WRONG: list[tuple[Path, Sequence[str], Sequence[str]]] = [
    (TIERED, ["verifer.hbm=1"], ["tiers.verifer.hbm: is no known key; did you mean 'tiers.verifier'?"]),
    (PLAIN, ["verifier.dram=1MiB"], [f"tiers.verifier.hbm: is missing; write a size above 0 {SIZE}"]),
    (TIERED, ["verifier.hbm=0"], [f"tiers.verifier.hbm: is 0; write a size above 0 {SIZE}"]),
    (TIERED, ["verifier.dram=-1"], [f"tiers.verifier.dram: is -1; write a size, or 0 for none, {SIZE}"]),
    (TIERED, ["verifier.nvme.size=big"], [f"tiers.verifier.nvme.size: is 'big'; write a size above 0 {SIZE}"]),
    (TIERED, ["verifier.nvme.pth=x"], ["tiers.verifier.nvme.pth: is no known key; did you mean "
                                       "'tiers.verifier.nvme.path'?"]),
    (PLAIN, ["verifier={hbm: 1MiB, nvme: {size: 1MiB}}"], ["tiers.verifier.nvme.path: is missing; write a path"]),
    (TIERED, ["verifier.options.recent=[1]"], ["tiers.verifier.options.recent: is a list; write a number, text, true "
                                               "or false"]),
    (TIERED, ["verifier.options=3"], ["tiers.verifier.options: is 3; write a mapping from names to numbers, texts, "
                                      "true or false"]),
    (TIERED, ["verifier.mode=fast"], ["tiers.verifier.mode: is 'fast'; write exact, certified or profiled"]),
    (TIERED, ["verifier.epsilon=1"], ["tiers.verifier.epsilon: is 1; write a number above 0 and below 1"]),
    (TIERED, ["verifier.bits=3"], ["tiers.verifier.bits: is 3; write 2, 4 or 8, or leave it out"]),
    (TIERED, ["verifier=9"], ["tiers.verifier: is 9; write a mapping with keys among hbm, dram, nvme, policy, "
                              "options, mode, epsilon, block_size, refresh, bandwidth, hysteresis, bits"]),
    (PLAIN, ["verifier={hbm: 1MiB, bits: 4}"], ["tiers.verifier.bits: is for KV outside hbm, and there is none; "
                                               "remove it or give dram or nvme"]),
    (WORLD, ["late={hbm: 1MiB, mode: profiled}"], ["tiers.late.mode: profiled is for language models; frames read all "
                                                  "their context; write mode: exact"]),
    (SLEEP, ["g0.hbm=1MiB"], ["tiers.g0: no stage on 'g0' holds KV; remove them"]),
]  # fmt: skip


@pytest.mark.parametrize(("path", "settings", "expected"), WRONG, ids=lambda value: str(value)[:40])
def test_what_is_wrong_is_said_where_it_stands(path: Path, settings: Sequence[str], expected: Sequence[str]) -> None:
    found = problems(path, *[f"tiers.{setting}" for setting in settings])
    key = settings[0].partition("=")[0]
    assert found == [f"--set tiers.{key}: {line}" for line in expected]


def test_lines_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "t.yaml"
    file.write_text(
        LANGUAGE
        + "  b: {hbm: 1MiB, dram: 1MiB, mode: certified, bits: 4}\n"
        + "  c:\n    hbm: 1MiB\n"
        + "  a:\n    hbm: 1MiB\n    mode: profiled\n"
        + "speculation: {drafter: ngram}\n"
    )
    assert problems(file) == [
        "FILE:11: tiers.b.bits: is 4: how often a block was moved out of hbm may change bits; leave it out or write "
        "deterministic: false",
        "FILE:11: tiers.b.mode: certified reads what happens to lie in hbm, which may change bits; write mode: exact "
        "or deterministic: false",
        "FILE:12: tiers.c: 'c' is no group; known are a, b",
    ]
    assert len(problems(file, "deterministic=false")) == 1


def test_a_drafter_s_approximations_change_no_text_unless_it_is_judged_by_them(tmp_path: Path) -> None:
    file = tmp_path / "t.yaml"
    file.write_text(LANGUAGE + "  a: {hbm: 1MiB, dram: 1MiB, mode: profiled, bits: 8}\n")
    assert problems(file) == []
    keys = [line.split(":")[2] for line in problems(file, "speculation.coupling=rejection")]
    assert keys == [" tiers.a.bits", " tiers.a.mode"]


def test_a_group_without_kv(tmp_path: Path) -> None:
    file = tmp_path / "t.yaml"
    text = WORLD.read_text() + "tiers: {late: {hbm: 1MiB}, early: {hbm: 1MiB}, third: {hbm: 1MiB}}\n"
    file.write_text(
        text.replace("\ngroups:", "\ngroups:\n  third: {}").replace("decode, group: late", "decode, group: third")
    )
    assert any("tiers.third: no stage on 'third' holds KV; give them to a group with a denoise stage" in line
               for line in problems(file))  # fmt: skip
