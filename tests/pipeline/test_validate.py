"""What single keys can't know: a broken topology for every check, with the exact lines that it prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from paceline.pipeline.flow import compute_chain, item_cycle, needed_item_edges, needed_kv_edges
from paceline.pipeline.load import check_topology, load_topology
from paceline.pipeline.topology import Topology, WorldTopology
from paceline.pipeline.validate import check_world_size, validate

TOPOLOGIES = Path(__file__).parents[2] / "topologies"

WORLD = """\
name: world
model: {steps: 2}
context: {mode: cascade}
groups:
  early: {threads: 1}
  late: {threads: 1}
stages:
  source: {kind: source, group: early}
  step0: {kind: denoise, group: early, steps: [0]}
  step1: {kind: denoise, group: late, steps: [1, clean]}
  decode: {kind: decode, group: late}
  sink: {kind: sink, group: early}
edges:
  - {from: source, to: step0}
  - {from: step0, to: step1, via: dist}
  - {from: step1, to: decode}
  - {from: decode, to: sink, via: dist}
  - {from: step1, to: step0, carries: kv, via: dist}
"""
KV = "  - {from: step1, to: step0, carries: kv, via: dist}\n"
SLEEP = """\
name: naps
workload: sleep
groups: {g0: {}, g1: {}}
stages:
  source: {kind: source, group: g0}
  a: {kind: sleep, group: g0, ms: 1}
  b: {kind: sleep, group: g1, ms: 1}
  sink: {kind: sink, group: g0}
edges:
  - {from: source, to: a}
  - {from: a, to: b, via: zmq}
  - {from: b, to: sink, via: zmq}
"""
WAY = "of the way source -> step0 -> step1 -> decode -> sink"

# name: (base, [(old, new), ...], expected lines without the file)
Case = tuple[str, Sequence[tuple[str, str]], Sequence[str]]
CASES: dict[str, Case] = {
    "stage on an unknown group": (
        WORLD,
        [("denoise, group: late", "denoise, group: lat")],
        ["10: stages.step1.group: 'lat' is no group; did you mean 'late'?"],
    ),
    "group that nothing uses": (
        WORLD,
        [("stages:", "  spare: {}\nstages:")],
        ["7: groups.spare: has no stage; place a stage on it or remove the group"],
    ),
    "edge to an unknown stage": (
        WORLD,
        [("to: decode}", "to: decodr}")],
        ["16: edges.2.to: 'decodr' is no stage; did you mean 'decode'?"],
    ),
    "edge from an unknown stage": (
        WORLD,
        [("from: source", "from: xyz")],
        ["14: edges.0.from: 'xyz' is no stage; known are source, step0, step1, decode, sink"],
    ),
    "edge given twice": (
        WORLD,
        [(KV, KV + KV)],
        ["19: edges.5: is the same as edge 4: kv from step1 to step0; keep one of the two"],
    ),
    "edge to itself": (
        WORLD,
        [(KV, KV + "  - {from: step0, to: step0}\n")],
        ["19: edges.5: goes from step0 to itself; remove it; what a stage keeps for itself needs no edge"],
    ),
    "local between groups": (
        WORLD,
        [("to: step1, via: dist", "to: step1, via: local")],
        [
            "15: edges.1.via: local can't carry step0 -> step1 from group 'early' to group 'late'; use dist or zmq",
        ],
    ),
    "local for odd sessions": (
        WORLD,
        [("model:", "schedule: mirrored\nmodel:")],
        [
            "15: edges.0.via: local can't carry source -> step0 from group 'early' to group 'late' for odd sessions "
            "(schedule: mirrored); use dist or zmq",
            "17: edges.2.via: local can't carry step1 -> decode from group 'early' to group 'late' for odd sessions "
            "(schedule: mirrored); use dist or zmq",
        ],
    ),
    "no sink": (
        WORLD,
        [("  sink: {kind: sink, group: early}\n", "")],
        [
            "7: stages: has no stage of kind sink; add exactly one: workload world needs it",
            "16: edges.3.to: 'sink' is no stage; known are source, step0, step1, decode",
        ],
    ),
    "two sources": (
        WORLD,
        [("  step0:", "  again: {kind: source, group: early}\n  step0:")],
        ["9: stages.again.kind: is a second source beside 'source'; keep exactly one source"],
    ),
    "sink away from its source": (
        WORLD,
        [("sink, group: early", "sink, group: late")],
        [
            "12: stages.sink.group: the sink is on 'late' but the source 'source' is on 'early'; "
            "put both on one group, where the session lives"
        ],
    ),
    "step on no stage": (
        WORLD,
        [("steps: 2", "steps: 3"), ("[1, clean]", "[2, clean]")],
        ["7: stages: step 1 is on no stage (model.steps is 3); add 1 to the steps of a denoise stage"],
    ),
    "step placed twice": (
        WORLD,
        [("[1, clean]", "[0, 1, clean]")],
        ["10: stages.step1.steps.0: step 0 is already on 'step0'; place each step exactly once"],
    ),
    "no clean pass": (
        WORLD,
        [("[1, clean]", "[1]")],
        [
            "7: stages: the clean pass is on no stage (context.mode cascade needs it); "
            "add clean to the steps of a denoise stage"
        ],
    ),
    "clean pass in matched": (
        WORLD,
        [("cascade", "matched"), (KV, "")],
        ["10: stages.step1.steps.1: context.mode matched has no clean pass; remove it from 'step1'"],
    ),
    "step beyond the model": (
        WORLD,
        [("[1, clean]", "[1, 2, clean]")],
        [
            "10: stages.step1.steps.1: step 2 does not exist where model.steps is 2; "
            "use 0 to 1 or clean, or change model.steps"
        ],
    ),
    "negative step": (
        WORLD,
        [("[0]", "[-1, 0]")],
        [
            "9: stages.step0.steps.0: step -1 does not exist where model.steps is 2; "
            "use 0 to 1 or clean, or change model.steps"
        ],
    ),
    "steps with a gap": (
        WORLD,
        [("steps: 2", "steps: 3"), ("[0]", "[0, 2]")],
        [
            "9: stages.step0.steps: has a gap: 0, 2; give each stage consecutive steps; clean follows the last",
            "10: stages.step1.steps: has a gap: 1, clean; give each stage consecutive steps; clean follows the last",
        ],
    ),
    "denoise without steps": (
        WORLD,
        [("steps: [0]", "steps: []")],
        [
            "7: stages: step 0 is on no stage (model.steps is 2); add 0 to the steps of a denoise stage",
            "9: stages.step0.steps: names no step; write a list such as [0] or [1, clean]",
        ],
    ),
    "steps on a decoder": (
        WORLD,
        [("kind: decode,", "kind: decode, steps: [1],")],
        ["11: stages.decode.steps: a decode stage takes no steps; remove them or write kind: denoise"],
    ),
    "sleep in a world": (
        WORLD,
        [("  step0:", "  nap: {kind: sleep, group: early}\n  step0:")],
        ["9: stages.nap.kind: 'sleep' has no place in workload world; use source, denoise, decode or sink"],
    ),
    "decode in a sleep workload": (
        SLEEP,
        [("a: {kind: sleep", "a: {kind: decode")],
        ["6: stages.a.kind: 'decode' has no place in workload sleep; use source, sleep or sink"],
    ),
    "cycle": (
        WORLD,
        [(KV, KV + "  - {from: step1, to: step0, via: dist}\n")],
        [
            "19: edges.5: closes a cycle without a credit: step0 -> step1 -> step0; "
            "remove one of these edges, or write carries: kv where KV flows back"
        ],
    ),
    "cycle over many stages": (
        WORLD,
        [("from: decode, to: sink", "from: decode, to: step0")],
        [
            f"13: edges: lack the item edge decode -> sink {WAY}; add {{from: decode, to: sink, via: dist}}",
            "17: edges.3: closes a cycle without a credit: step0 -> step1 -> decode -> step0; "
            "remove one of these edges, or write carries: kv where KV flows back",
        ],
    ),
    "edge against the order of steps": (
        WORLD,
        [("from: step0, to: step1", "from: step1, to: sink")],
        [
            f"13: edges: lack the item edge step0 -> step1 {WAY}; add {{from: step0, to: step1, via: dist}}",
            "15: edges.1: step1 -> sink is not on the way source -> step0 -> step1 -> decode -> sink; "
            "remove or redirect it",
        ],
    ),
    "KV missing": (
        WORLD,
        [(KV, "")],
        [
            "13: edges: lack the KV edge step1 -> step0, which context.mode cascade reads; "
            "add {from: step1, to: step0, carries: kv, via: dist}"
        ],
    ),
    "KV that nothing reads": (
        WORLD,
        [(KV, KV + "  - {from: step0, to: step1, carries: kv, via: dist}\n")],
        [
            "19: edges.5.carries: carries KV step0 -> step1, which context.mode cascade does not read; remove the edge",
        ],
    ),
    "KV in matched": (
        WORLD,
        [("cascade", "matched"), ("[1, clean]", "[1]")],
        [
            "18: edges.4.carries: carries KV step1 -> step0, which context.mode matched does not read; remove the edge",
        ],
    ),
    "KV to a decoder": (
        WORLD,
        [("to: decode}", "to: decode, carries: kv}")],
        [
            f"13: edges: lack the item edge step1 -> decode {WAY}; add {{from: step1, to: decode}}",
            "16: edges.2.carries: carries KV, but 'decode' is no denoise stage; write carries: item",
        ],
    ),
    "clean pass aside without its frames": (
        WORLD,
        [("[1, clean]", "[1]"), ("  decode: {", "  write: {kind: denoise, group: late, steps: [clean]}\n  decode: {")],
        [
            "14: edges: lack the item edge step1 -> write, which takes finished frames to the clean pass; "
            "add {from: step1, to: write}",
            "14: edges: lack the KV edge write -> step0, which context.mode cascade reads; "
            "add {from: write, to: step0, carries: kv, via: dist}",
            "14: edges: lack the KV edge write -> step1, which context.mode cascade reads; "
            "add {from: write, to: step1, carries: kv}",
        ],
    ),
    "several ranks on one GPU": (
        WORLD,
        [("{threads: 1}", "{device: 'cuda:0', ranks: 2}"), ("late: {threads: 1}", "late: {device: 'cuda:1'}")],
        [
            "5: groups.early.ranks: puts 2 ranks on one GPU, cuda:0; "
            "write device: cuda, which gives each rank a GPU of its own, or ranks: 1"
        ],
    ),
    "mirrored on one group": (
        SLEEP,
        [("workload", "schedule: mirrored\nworkload"), ("g1: {}", ""), ("group: g1", "group: g0")],
        [
            "2: schedule: mirrored needs sleep stages on at least 2 groups; "
            "spread them over groups or use schedule: wavefront"
        ],
    ),
    "mirrored with two stages on a group": (
        SLEEP,
        [
            ("workload", "schedule: mirrored\nworkload"),
            ("  sink:", "  c: {kind: sleep, group: g1}\n  sink:"),
            ("from: b", "from: c"),
            ("edges:", "edges:\n  - {from: b, to: c}"),
            ("from: source, to: a", "from: source, to: a, via: zmq"),
        ],
        ["9: stages.c.group: 'g1' already has the sleep stage 'b'; mirrored needs a group for each of them"],
    ),
    "batched over groups": (
        WORLD,
        [("model:", "schedule: batched\ndeterministic: false\nmodel:"), ("late: {", "late: {ranks: 2, ")],
        [
            "2: schedule: batched needs one denoise stage, not 2; "
            "put all steps on one stage or use schedule: wavefront",
            "8: groups.late.ranks: batched needs one rank for its joint forward; "
            "write ranks: 1 or use another schedule",
        ],
    ),
    "batched and deterministic": (
        WORLD,
        [
            ("model:", "schedule: batched\nmodel:"),
            ("  step0: {kind: denoise, group: early, steps: [0]}\n", ""),
            ("[1, clean]", "[0, 1, clean]"),
            ("to: step0}", "to: step1, via: dist}"),
            ("  - {from: step0, to: step1, via: dist}\n", ""),
            (KV, ""),
        ],
        [
            "2: schedule: batched joins steps in one forward, which may change bits; "
            "write deterministic: false or use schedule: wavefront"
        ],
    ),
    "batched sleep": (
        SLEEP,
        [("workload", "schedule: batched\nworkload")],
        ["2: schedule: batched joins denoising steps; workload sleep has none; use serial, wavefront or mirrored"],
    ),
    "batch of sessions and deterministic": (
        WORLD,
        [("steps: [0]", "steps: [0], max_batch: 2")],
        [
            "9: stages.step0.max_batch: is 2: a batch of several sessions may change bits; "
            "write max_batch: 1 or deterministic: false"
        ],
    ),
    "threads that differ": (
        WORLD,
        [("late: {threads: 1}", "late: {threads: 2}")],
        [
            "6: groups.late.threads: is 2, but 1 on 'early': bits depend on the thread count; "
            "use the same number for all denoise groups or write deterministic: false"
        ],
    ),
    "devices that differ": (
        WORLD,
        [("late: {threads: 1}", "late: {device: cuda}")],
        [
            "6: groups.late.device: is cuda, but cpu on 'early': bits depend on the kind of device; "
            "use one kind for all denoise groups or write deterministic: false"
        ],
    ),
    "late policy without a deadline": (
        WORLD,
        [("model:", "on_late: repeat\nmodel:")],
        ["2: on_late: repeat needs a deadline; write deadline_ms, such as 40 for 25 frames/s, or on_late: wait"],
    ),
    "fewer steps than one": (
        WORLD,
        [
            ("model: {steps: 2}", "on_late: fewer_steps\ndeadline_ms: 40\nmodel: {steps: 1}"),
            ("[1, clean]", "[clean]"),
            ("to: decode}", "to: decode, via: dist}"),
            ("from: step1, to: decode", "from: step0, to: decode"),
        ],
        ["2: on_late: fewer_steps can't go below the 1 step of model.steps; raise model.steps or use wait or repeat"],
    ),
    "fewer steps of sleep": (
        SLEEP,
        [("workload", "on_late: fewer_steps\ndeadline_ms: 40\nworkload")],
        ["2: on_late: workload sleep has no steps to leave out; use wait or repeat"],
    ),
    "socket for the world": (
        WORLD,
        [("model:", "network: {bind: 0.0.0.0}\nmodel:")],
        [
            "2: network.bind: '0.0.0.0' can be reached from other hosts; "
            "bind 127.0.0.1 or give network.curve with secret and allow"
        ],
    ),
    "sleep chain that branches": (
        SLEEP,
        [("edges:", "edges:\n  - {from: source, to: b, via: zmq}")],
        [
            "11: edges.1: source -> a branches off: source already sends to b; make the stages one chain",
            "12: edges.2: a -> b joins in: b already hears from source; make the stages one chain",
        ],
    ),
    "sleep chain with a loose stage": (
        SLEEP,
        [("  sink: {", "  c: {kind: sleep, group: g0}\n  sink: {")],
        [
            "8: stages.c: sends items nowhere; add {from: c, to: NEXT}",
            "8: stages.c: can't be reached from the source; add {from: PREVIOUS, to: c}",
        ],
    ),
    "sleep chain past its ends": (
        SLEEP,
        [("edges:", "edges:\n  - {from: sink, to: source}")],
        [
            "13: edges.3: closes a cycle without a credit: sink -> source -> a -> b -> sink; "
            "remove one of these edges, or write carries: kv where KV flows back"
        ],
    ),
    "KV in a sleep workload": (
        SLEEP,
        [("edges:", "edges:\n  - {from: b, to: a, carries: kv, via: zmq}")],
        ["10: edges.0.carries: has no meaning in workload sleep; remove it; only workload world takes it"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_broken_topology(name: str, tmp_path: Path) -> None:
    text, changes, expected = CASES[name]
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    file = tmp_path / "t.yaml"
    file.write_text(text)
    topology, found = check_topology(file)
    assert topology is None
    assert [str(problem) for problem in found] == [f"{file}:{line}" for line in expected]


@pytest.mark.parametrize("text", [WORLD, SLEEP], ids=["world", "sleep"])
def test_the_bases_are_valid(text: str, tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(text)
    assert check_topology(tmp_path / "t.yaml")[1] == []


def test_every_mode_has_a_valid_topology(tmp_path: Path) -> None:
    for mode, steps, kv in [("clean", "[1, clean]", KV), ("staggered", "[1, clean]", KV), ("matched", "[1]", "")]:
        text = WORLD.replace("cascade", mode).replace("[1, clean]", steps).replace(KV, kv)
        (tmp_path / "t.yaml").write_text(text)
        assert check_topology(tmp_path / "t.yaml")[1] == [], mode


def test_a_clean_pass_on_a_stage_of_its_own(tmp_path: Path) -> None:
    text = WORLD.replace("[1, clean]", "[1]").replace(
        "  decode: {", "  write: {kind: denoise, group: late, steps: [clean]}\n  decode: {"
    )
    text += "  - {from: step1, to: write}\n"
    text += "  - {from: write, to: step0, carries: kv, via: dist}\n  - {from: write, to: step1, carries: kv}\n"
    (tmp_path / "t.yaml").write_text(text)
    topology = load_topology(tmp_path / "t.yaml")
    assert compute_chain(topology) == ["step0", "step1", "write"]
    assert ("step1", "decode") in needed_item_edges(topology)
    assert ("step1", "write") in needed_item_edges(topology)


def test_needed_kv_edges_by_mode() -> None:
    file = TOPOLOGIES / "world-4-mirrored.yaml"
    topology = load_topology(file)
    assert len(needed_kv_edges(topology)) == 6
    assert set(needed_kv_edges(with_mode(topology, "clean"))) == {("step3", f"step{i}") for i in range(3)}
    assert needed_kv_edges(with_mode(topology, "staggered")) == needed_kv_edges(topology)
    assert needed_kv_edges(with_mode(topology, "matched")) == []


def with_mode(topology: Topology, mode: str) -> WorldTopology:
    data = topology.model_dump(by_alias=True)
    data["context"]["mode"] = mode
    return WorldTopology.model_validate(data)


def test_no_cycle_in_what_ships() -> None:
    for file in TOPOLOGIES.glob("*.yaml"):
        topology = load_topology(file)
        # In a language workload windows go one way and verdicts the other; nobody waits for credit there.
        assert topology.workload == "language" or item_cycle(topology) == []
        assert validate(topology) == []


def test_world_size() -> None:
    topology = load_topology(TOPOLOGIES / "world-4-mirrored.yaml")
    assert check_world_size(topology, 4) == []
    assert [str(problem) for problem in check_world_size(topology, 2)] == [
        "groups: add up to 4 ranks (g0: 1, g1: 1, g2: 1, g3: 1), but 2 processes were started; "
        "start 4 processes or change the ranks of a group"
    ]


@pytest.mark.parametrize("bind", ["127.0.0.1", "127.5.5.5", "::1", "[::1]", "localhost", "lo"])
def test_loopback_needs_no_keys(bind: str) -> None:
    assert check_topology(TOPOLOGIES / "world-2.yaml", [f"network.bind='{bind}'"])[1] == []


def test_problems_are_independent_of_one_another(tmp_path: Path) -> None:
    """Keys that are wrong one by one don't hide what is wrong between the others."""
    text = WORLD.replace("{steps: 2}", "{steps: 2, stepps: 1}").replace("late: {threads: 1}", "late: {threads: 2}")
    text = text.replace(KV, "").replace("cascade}", "cascade, window: 0}")
    (tmp_path / "t.yaml").write_text(text)
    found = [problem.key for problem in check_topology(tmp_path / "t.yaml")[1]]
    assert found == ["model.stepps", "context.window", "groups.late.threads"]
    text = text.replace(", stepps: 1", "")
    (tmp_path / "t.yaml").write_text(text)
    found = [problem.key for problem in check_topology(tmp_path / "t.yaml")[1]]
    assert found == ["context.window", "groups.late.threads", "edges"]
