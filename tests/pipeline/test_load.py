"""Topology files: every problem with file, line, key and what would be right."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.pipeline.document import parse_yaml
from paceline.pipeline.load import check_topology, load_topology
from paceline.pipeline.placement import Placement
from paceline.pipeline.problem import TopologyError
from paceline.pipeline.topology import Schedule

MS = "write a number above 0 and of at most 3600000"
ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "topologies").glob("*.yaml"))
WORLD = """\
name: world
schedule: wavefront
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
  - {from: step1, to: step0, carries: kv, via: dist, inflight: 16}
"""


def problems(tmp_path: Path, text: str, *overrides: str) -> list[str]:
    """What is wrong with a topology, with the file called FILE."""
    file = tmp_path / "topology.yaml"
    file.write_text(text, encoding="utf-8")
    topology, found = check_topology(file, overrides)
    assert (topology is None) == bool(found)
    return [str(problem).replace(str(file), "FILE") for problem in found]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_topologies_are_valid(path: Path) -> None:
    assert load_topology(path).name == path.stem


def test_the_base_of_these_tests_is_valid(tmp_path: Path) -> None:
    assert problems(tmp_path, WORLD) == []


BROKEN = {
    "unknown key": (
        "threads: 1",
        "thread: 1",
        ["FILE:6: groups.early.thread: is no known key; did you mean 'threads'?"],
    ),
    "unknown key far from any": (
        "schedule:",
        "zzz: 1\nschedule:",
        [
            "FILE:2: zzz: is no known key; known are version, name, workload, seed, deterministic, groups, "
            "stages, edges, tiers, network, inject, schedule, deadline_ms, on_late, model, context"
        ],
    ),
    "misspelt section": ("stages:", "stagess:", ["FILE:8: stagess: is no known key; did you mean 'stages'?"]),
    "choice": (
        "mode: cascade",
        "mode: casc",
        ["FILE:4: context.mode: is 'casc'; write clean, cascade, staggered or matched"],
    ),
    "text for a number": (
        "{steps: 2}",
        "{steps: two}",
        ["FILE:3: model.steps: is 'two'; write a whole number of at least 1 and of at most 64"],
    ),
    "flag for a number": (
        "inflight: 16",
        "inflight: true",
        ["FILE:19: edges.4.inflight: is true; write a whole number of at least 1"],
    ),
    "limit of zero items": (
        "inflight: 16",
        "inflight: 0",
        ["FILE:19: edges.4.inflight: is 0; write a whole number of at least 1"],
    ),
    "limit of zero bytes": (
        "inflight: 16",
        "bytes: 0",
        [
            "FILE:19: edges.4.bytes: is 0; write a size above 0 in bytes or with a unit, such as 4096, 64KiB or 1.5MiB",
        ],
    ),
    "no size": (
        "inflight: 16",
        "bytes: 5 apples",
        [
            "FILE:19: edges.4.bytes: is '5 apples'; write a size above 0 in bytes or with a unit, such as 4096, 64KiB "
            "or 1.5MiB"
        ],
    ),
    "deadline of zero": (
        "model:",
        "deadline_ms: 0\nmodel:",
        [f"FILE:3: deadline_ms: is 0; {MS}"],
    ),
    "infinite": (
        "model:",
        "deadline_ms: .inf\nmodel:",
        [f"FILE:3: deadline_ms: is inf; {MS}"],
    ),
    "missing choice": (
        "kind: decode, ",
        "",
        ["FILE:12: stages.decode.kind: is missing; write source, denoise, decode, sleep, sink, draft or verify"],
    ),
    "missing end": ("from: decode, ", "", ["FILE:18: edges.3.from: is missing; write the name of a stage"]),
    "device": (
        "late: {",
        "late: {device: gpu, ",
        ["FILE:7: groups.late.device: is 'gpu'; write cpu, cuda or cuda:N"],
    ),
    "name with a dot": (
        "  early: {threads: 1}",
        "  early: {threads: 1}\n  a.b: {}",
        ["FILE:7: groups.a.b: 'a.b' is no name; use letters, digits, '_' and '-' only, so that --set can name it"],
    ),
    "empty group": (
        "early: {threads: 1}",
        "early:",
        ["FILE:6: groups.early: is empty; write a mapping with keys among ranks, device, threads"],
    ),
    "step that is no step": (
        "[0]",
        "[0, last]",
        ["FILE:10: stages.step0.steps.1: is 'last'; write a step number from 0, or clean"],
    ),
    "given twice": (
        "model:",
        "name: again\nmodel:",
        ["FILE:3: name: is given twice, first on line 1; keep one of the two"],
    ),
    "syntax": (
        "groups:\n",
        "groups: [\n",
        ["FILE:7: topology: is not YAML: expected ',' or ']', but got '<scalar>'; mend the text near column 3"],
    ),
    "code in YAML": (
        "name: world",
        "name: !!python/object/apply:os.system [true]",
        ["FILE:1: name: is a list; write text of letters, digits, '.', '_' and '-'"],
    ),
    "tag": (
        "{steps: 2}",
        "{steps: !!python/name:os.sep ''}",
        ["FILE:3: model.steps: has the tag tag:yaml.org,2002:python/name:os.sep; write a plain number or text"],
    ),
    "alias to itself": (
        "{steps: 2}",
        "&m {steps: *m}",
        ["FILE:3: model.steps: contains itself; write the value out instead of an alias"],
    ),
    "list for the whole": (
        WORLD,
        "- 1",
        ["FILE:1: topology: is a list; write a mapping with keys among version, name, workload, "],
    ),
    "empty file": (
        WORLD,
        "",
        ["FILE:1: groups: is missing; ", "FILE:1: name: is missing; ", "FILE:1: stages: is missing; "],
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_file(case: str, tmp_path: Path) -> None:
    old, new, expected = BROKEN[case]
    assert old in WORLD
    found = problems(tmp_path, WORLD.replace(old, new, 1))
    assert [
        line[: len(want)] if want.endswith(("; ", ", ")) else line for line, want in zip(found, expected, strict=True)
    ] == (expected)


def test_every_problem_at_once(tmp_path: Path) -> None:
    text = WORLD
    for old, new in (
        ("name: world", "name: my world"),
        ("threads: 1", "threds: 1"),
        ("step0, via: dist}", "step0, via: dist}"),
        ("to: decode}", "to: decod}"),
        ("inflight: 16", "inflight: 0"),
        ("sink, group: early", "sink, group: last"),
    ):
        text = text.replace(old, new, 1)
    assert problems(tmp_path, text) == [
        "FILE:1: name: is 'my world'; write text of letters, digits, '.', '_' and '-'",
        "FILE:6: groups.early.threds: is no known key; did you mean 'threads'?",
        "FILE:13: stages.sink.group: 'last' is no group; did you mean 'late'?",
        "FILE:17: edges.2.to: 'decod' is no stage; did you mean 'decode'?",
        "FILE:19: edges.4.inflight: is 0; write a whole number of at least 1",
    ]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    _, found = check_topology(tmp_path / "none.yaml")
    assert str(found[0]) == (
        f"{tmp_path}/none.yaml:1: topology: can't be read: No such file or directory; "
        "give the path of a topology file, such as topologies/world-2.yaml"
    )


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_bytes(b"name: \xff")
    assert "byte 6 is not UTF-8; save the file as UTF-8 text" in str(check_topology(tmp_path / "t.yaml")[1][0])


def test_what_is_wrong_below_a_name_that_is_none(tmp_path: Path) -> None:
    text = WORLD.replace("  step0:", '  "":', 1)
    assert text != WORLD
    (tmp_path / "t.yaml").write_text(text.replace("steps: [0]", "steps: [null]", 1))
    _, found = check_topology(tmp_path / "t.yaml")
    assert {"stages.", "stages..steps.0"} <= {problem.key for problem in found}


def test_the_error_holds_every_line(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text("name: a b\nmodell: 1\n")
    with pytest.raises(TopologyError) as caught:
        load_topology(tmp_path / "t.yaml")
    assert str(caught.value).splitlines() == [str(problem) for problem in caught.value.problems]
    assert len(caught.value.problems) == 4


def test_overrides(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(WORLD)
    topology = load_topology(
        tmp_path / "t.yaml",
        ["edges.0.inflight=4", "groups.late.threads=1", "deadline_ms=40", "schedule=serial", "edges.4.bytes=1MiB"],
    )
    assert topology.edges[0].inflight == 4
    assert topology.deadline_ms == 40
    assert topology.schedule is Schedule.serial
    assert topology.edges[4].bytes == 2**20
    curve = load_topology(
        tmp_path / "t.yaml", ["network.curve={secret: a, allow: b}", "network.bind=0.0.0.0"]
    ).network.curve
    assert curve is not None
    assert curve.allow == Path("b")


BROKEN_OVERRIDES = {
    "edges.0.inflight=0": "--set edges.0.inflight: edges.0.inflight: is 0; write a whole number of at least 1",
    "edges.0.inflght=2": "--set edges.0.inflght: edges.0.inflght: is no known key; did you mean 'edges.0.inflight'?",
    "edges.9.via=zmq": (
        "--set edges.9.via: edges.9.via: is no known key; known are edges.0, edges.1, edges.2, edges.3, edges.4"
    ),
    "groups.lat.threads=2": (
        "--set groups.lat.threads: groups.lat.threads: is no known key; did you mean 'groups.late'?"
    ),
    "dedline_ms=40": "--set dedline_ms: dedline_ms: is no known key; did you mean 'deadline_ms'?",
    "seed.x=1": "--set seed.x: seed.x: is no known key; seed has nothing below it that could be set",
    "seed": "--set seed: seed: has no value; write --set KEY=VALUE",
    "seed=[": (
        "--set seed: seed: is not YAML: expected the node content, but found '<stream end>'; "
        "mend the text near column 2"
    ),
    "network.curve.secret=k": "--set network.curve.secret: network.curve.allow: is missing; write a path",
    "groups.late.threads=2": (
        "--set groups.late.threads: groups.late.threads: is 2, but 1 on 'early': bits depend on the thread count; "
        "use the same number for all denoise groups or write deterministic: false"
    ),
}


@pytest.mark.parametrize("setting", BROKEN_OVERRIDES)
def test_broken_override(setting: str, tmp_path: Path) -> None:
    assert problems(tmp_path, WORLD, setting) == [BROKEN_OVERRIDES[setting]]


def test_a_value_on_the_command_line_mends_the_file(tmp_path: Path) -> None:
    assert problems(tmp_path, WORLD.replace("inflight: 16", "inflight: 0"), "edges.4.inflight=16") == []


def test_world_size(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(WORLD)
    assert load_topology(tmp_path / "t.yaml", world_size=2).world_size == 2
    _, found = check_topology(tmp_path / "t.yaml", world_size=4)
    assert [str(problem) for problem in found] == [
        f"{tmp_path}/t.yaml:5: groups: add up to 2 ranks (early: 1, late: 1), but 4 processes were started; "
        "start 2 processes or change the ranks of a group"
    ]


def test_many_aliases_end_soon(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    found = problems(tmp_path, "\n".join(lines))
    assert any("makes more than 200000 values; use fewer aliases" in line for line in found)


@pytest.mark.parametrize("depth", [40, 250])
def test_deep_nesting_is_a_problem(depth: int, tmp_path: Path) -> None:
    found = problems(tmp_path, WORLD.replace("steps: 2", f"steps: {'[' * depth}{']' * depth}"))
    assert any(line.endswith(": is nested too deeply; write a flat topology") for line in found)
    assert any(line.startswith("FILE:3: model.steps: is a list; ") for line in found)


def test_endless_nesting_is_a_problem(tmp_path: Path) -> None:
    assert problems(tmp_path, "a: " + "[" * 20_000) == ["FILE:1: topology: is nested too deeply; write a flat topology"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("1:30", "is 1:30, which YAML 1.1 reads as 90 (base 60); write 90, or '1:30' in quotes for text"),
        ("1:30.5", "is 1:30.5, which YAML 1.1 reads as 90.5 (base 60); write 90.5, or '1:30.5' in quotes for text"),
        ("010", "is 010, which YAML 1.1 reads as 8 (base 8); write 8 or 10, or '010' in quotes for text"),
        ("-0_7", "is -0_7, which YAML 1.1 reads as -7 (base 8); write -7 or -7, or '-0_7' in quotes for text"),
        (
            "1_000",
            "is 1_000, which YAML 1.1 reads as 1000 and YAML 1.2 as text; write 1000, or '1_000' in quotes for text",
        ),
        ("0b11", "is 0b11, which YAML 1.1 reads as 3 (base 2); write 3, or '0b11' in quotes for text"),
        ("on", "is on, which YAML 1.1 reads as true; write true, or 'on' in quotes for text"),
        ("No", "is No, which YAML 1.1 reads as false; write false, or 'No' in quotes for text"),
    ],
)
def test_what_yaml_1_1_reads_as_something_else_is_a_problem(value: str, said: str, tmp_path: Path) -> None:
    for key in ("deadline_ms", "name", "deterministic"):
        text = WORLD.replace("name: world", "name: world\n") + f"{key}: {value}\n"
        if key == "name":
            text = WORLD.replace("name: world", f"name: {value}")
        assert [line for line in problems(tmp_path, text) if line.endswith(f": {key}: {said}")]
    _, found = check_topology(SHIPPED[0], [f"seed={value}"])
    assert [str(problem) for problem in found] == [f"--set seed: seed: {said}"]
    # In quotes it is text, which a name may be as long as its letters are.
    path = tmp_path / "quoted.yaml"
    path.write_text(WORLD.replace("name: world", f"name: '{value.replace(':', '.')}'"))
    assert load_topology(path).name == value.replace(":", ".")


@pytest.mark.parametrize(("value", "number"), [("1e3", 1000.0), ("2.5e1", 25.0), ("1.0e+2", 100.0), ("5E-1", 0.5)])
def test_a_power_of_ten_is_a_number(value: str, number: float, tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(WORLD + f"deadline_ms: {value}\n")
    assert load_topology(path).deadline_ms == number
    assert load_topology(path, [f"deadline_ms={value}"]).deadline_ms == number
    assert parse_yaml(f"'{value}'", "FILE").data == value


@pytest.mark.parametrize(
    "value", ["true", "False", "0", "-7", "0x1F", "0.5", ".5", "null", "~", "2024-01-01", "1e", "x:1"]
)
def test_what_every_yaml_reads_the_same_is_left_alone(value: str) -> None:
    document = parse_yaml(f"a: {value}", "FILE")
    assert document.problems == []
    wanted = {
        "true": True,
        "False": False,
        "0": 0,
        "-7": -7,
        "0x1F": 31,
        "0.5": 0.5,
        ".5": 0.5,
        "null": None,
        "~": None,
    }
    assert document.data == {"a": wanted.get(value, value)}


# -- any file gives problems or a topology, and never an exception ----------------------------------------------------

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70),
    st.sampled_from([2**63, -(2**70)]),
    st.floats(),
    st.sampled_from(
        ["", "?", "clean", "early", "step0", "kv", "dist", "sleep", "mirrored", "matched", "4KiB", "9" * 400]
    ),
    st.text(max_size=5),
    st.just([]),
    st.just({}),
    st.just([0, "clean", 1]),
    st.just({"kind": "denoise", "group": "late"}),
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mutated") / "topology.yaml"


def places(data: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in plain data."""
    keys = list(data) if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
    return [(data, key) for key in keys] + [place for key in keys for place in places(data[key])]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("world-2-memory", "context.memory.options.decay"),
        ("world-2-tiers", "tiers.late.options.reach"),
        ("speculate-2", "speculation.options.longest"),
    ],
)
def test_an_option_that_is_no_plain_value(tmp_path: Path, name: str, key: str) -> None:
    for value in ("[1]", "{a: 1}"):
        (problem,) = check_topology(ROOT / "topologies" / f"{name}.yaml", [f"{key}={value}"])[1]
        assert f"{key}: is a " in str(problem)
        assert "write a number, text, true or false" in str(problem)


@settings(max_examples=300, deadline=None)
@given(path=st.sampled_from(SHIPPED), data=st.data(), count=st.integers(1, 4))
def test_mutated_values_never_raise(scratch: Path, path: Path, data: st.DataObject, count: int) -> None:
    tree = copy.deepcopy(yaml.safe_load(path.read_text()))
    for _ in range(count):
        container, key = data.draw(st.sampled_from(places(tree)))
        action = data.draw(st.sampled_from(["replace", "delete", "rename", "add"]))
        if action == "replace":
            container[key] = copy.deepcopy(data.draw(JUNK))
        elif action == "delete":
            del container[key]
        elif isinstance(container, list):
            container.append(copy.deepcopy(data.draw(JUNK)))
        elif action == "rename":
            container[data.draw(st.text(max_size=4) | st.sampled_from(["a.b", "kinds", "step_0"]))] = container.pop(key)
        else:
            container[data.draw(st.text(max_size=4))] = copy.deepcopy(data.draw(JUNK))
        if not places(tree):
            break
    check_text(yaml.safe_dump(tree, allow_unicode=True), scratch)


@settings(max_examples=300, deadline=None)
@given(path=st.sampled_from(SHIPPED), seed=st.integers(0, 2**32), junk=st.text(max_size=6))
def test_mutated_text_never_raises(scratch: Path, path: Path, seed: int, junk: str) -> None:
    text = path.read_text()
    chance = random.Random(seed)
    start = chance.randrange(len(text))
    length = chance.choice([0, 1, 2, 5, 30])
    marks = chance.choice(
        ["", junk, "{", "]", ": ", "- ", "!!int ", "!!float ", "!!bool ", "*a ", "&a ", "\t", "|", "\\ud800", '"']
    )
    check_text(text[:start] + marks + text[start + length :], scratch)


@settings(max_examples=100, deadline=None)
@given(
    setting=st.text(max_size=12)
    | st.builds(
        "{}={}".format, st.sampled_from(["seed", "edges", "edges.0", "groups.g0", "model"]), st.text(max_size=8)
    )
)
def test_overrides_never_raise(setting: str) -> None:
    _, found = check_topology(SHIPPED[0], [setting])
    assert all(str(problem).isprintable() for problem in found)


def check_text(text: str, file: Path) -> None:
    """Either a topology or problems, each printed on one line."""
    file.write_bytes(text.encode())
    topology, found = check_topology(file)
    assert (topology is None) == bool(found)
    if topology is not None:
        Placement(topology).routes(2)
    for problem in found:
        assert problem.file == str(file)
        assert problem.line is not None
        assert 1 <= problem.line <= len(text) + 1
        assert str(problem).isprintable()


@pytest.mark.parametrize(
    ("file", "section", "path", "taker"),
    [
        ("speculate-2", "model", "steps", "world"),
        ("speculate-2", "context", "recall", "world"),
        ("world-2", "speculation", "window", "language"),
        ("world-2", "model", "draft", "language"),
        ("sleep-4", "model", "steps", "world"),
        ("sleep-4", "speculation", "depth", "language"),
    ],
)
def test_a_key_of_another_workload_is_refused(tmp_path: Path, file: str, section: str, path: str, taker: str) -> None:
    text = (ROOT / "topologies" / f"{file}.yaml").read_text()
    workload = yaml.safe_load(text).get("workload", "world")
    others = [line for line in text.splitlines() if not line.startswith(f"{section}:")]
    broken = tmp_path / "t.yaml"
    broken.write_text("\n".join([*others, f"{section}:", f"  {path}: 2"]))
    takes = f"has no meaning in workload {workload}; remove it; only workload {taker} takes it"
    found = check_topology(broken)[1]
    assert [str(problem) for problem in found] == [f"{broken}:{len(others) + 2}: {section}.{path}: {takes}"]
    key = f"{section}.{path}"
    found = check_topology(ROOT / "topologies" / f"{file}.yaml", [f"{key}=2"])[1]
    assert [str(problem) for problem in found] == [f"--set {key}: {key}: {takes}"]


@pytest.mark.parametrize(
    ("file", "at", "problem"),
    [
        ("speculate-2", "draft, group: drafter", "stages.draft.steps: a draft stage takes no steps; remove them"),
        ("speculate-2", "draft, group: drafter", "stages.draft.max_batch: a draft stage takes no max_batch; remove it"),
        ("speculate-2", "verify, group: verifier", "stages.verify.item_bytes: a verify stage takes no item_bytes; "
         "remove it"),
        ("sleep-4", "sink, group: g0", "stages.sink.item_bytes: a sink stage takes no item_bytes; remove it or write "
         "kind: source"),
        ("world-2", "source, group: early", "stages.source.item_bytes: a source stage takes no item_bytes; remove it"),
        ("world-2", "sink, group: early", "stages.sink.max_batch: a sink stage takes no max_batch; remove it or write "
         "kind: denoise or decode"),
        ("speculate-2", "to: verify, via: zmq", "edges.0.layers: has no meaning in workload language; remove it; only "
         "workload world takes it"),
        ("world-2", "from: source, to: step0", "edges.0.layers: is for KV, and this edge carries items; remove it or "
         "write carries: kv"),
    ],
)  # fmt: skip
def test_a_key_that_its_stage_or_edge_does_not_take(tmp_path: Path, file: str, at: str, problem: str) -> None:
    """In the file and from the command line, also where the value is the default one."""
    shipped = ROOT / "topologies" / f"{file}.yaml"
    text = shipped.read_text()
    key = problem.partition(":")[0]
    default = {"steps": "[]", "max_batch": "1", "item_bytes": "4096", "layers": "1"}[key.rpartition(".")[2]]
    assert text.count(at) == 1
    broken = tmp_path / "t.yaml"
    broken.write_text(text.replace(at, f"{at}, {key.rpartition('.')[2]}: {default}"))
    line = text[: text.index(at)].count("\n") + 1
    assert [str(found) for found in check_topology(broken)[1]] == [f"{broken}:{line}: {problem}"]
    assert [str(found) for found in check_topology(shipped, [f"{key}={default}"])[1]] == [f"--set {key}: {problem}"]


@pytest.mark.parametrize(
    ("kind", "problems"),
    [
        ("kind: denois, ", ["stages.step0.kind: is 'denois'; write source, denoise"]),
        ("", ["stages.step0.kind: is missing; write source, denoise"]),
        ("kind: draft, ", ["stages.step0.kind: 'draft' has no place in workload world; use source, denoise",
                           "stages.step0.steps: a draft stage takes no steps; remove them or write kind: denoise"]),
    ],
)  # fmt: skip
def test_keys_of_a_stage_whose_kind_is_wrong(tmp_path: Path, kind: str, problems: list[str]) -> None:
    """Where the kind says nothing, nothing is said of the keys that only some kinds take."""
    text = (ROOT / "topologies" / "world-2.yaml").read_text()
    broken = tmp_path / "t.yaml"
    broken.write_text(text.replace("kind: denoise, ", kind, 1))
    found = [str(problem).partition(" ")[2] for problem in check_topology(broken)[1]]
    assert [text[: len(start)] for text, start in zip(found, problems, strict=True)] == problems


@pytest.mark.parametrize("key", ["schedule: wavefront", "deadline_ms: 40", "on_late: wait"])
def test_keys_of_frames_in_a_language_topology(tmp_path: Path, key: str) -> None:
    text = (ROOT / "topologies" / "speculate-2.yaml").read_text()
    broken = tmp_path / "t.yaml"
    broken.write_text(f"{text}{key}\n")
    (found,) = check_topology(broken)[1]
    wrong = "has no meaning in workload language; remove it; only workloads world and sleep take it"
    assert str(found) == f"{broken}:{text.count(chr(10)) + 1}: {key.partition(':')[0]}: {wrong}"
