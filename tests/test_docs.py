"""The topology reference names every key with its default, and its examples are what is really printed."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from paceline.pipeline.load import check_topology
from paceline.pipeline.schema import pattern, slot_at
from paceline.pipeline.strict_model import parse_size
from tests.file_list import listing

ROOT = Path(__file__).parents[1]
REFERENCE = (ROOT / "docs" / "topology.md").read_text(encoding="utf-8")
TABLES = re.findall(r"^\| key \| default \| meaning \|\n\|[-|]+\n((?:\|.*\n)+)", REFERENCE, re.MULTILINE)
ROWS = dict(re.findall(r"^\| `([^`]+)` \|(.*?)\|", "".join(TABLES), re.MULTILINE))


def fields() -> dict[str, FieldInfo]:
    """Every key of a topology of any workload, as a pattern, with its field; `world` is the workload by default."""
    return fields_of("language") | fields_of("sleep") | fields_of("world")


def fields_of(workload: str, path: tuple[str | int, ...] = ()) -> dict[str, FieldInfo]:
    """Every key of a workload's topologies."""
    found: dict[str, FieldInfo] = {}
    slot = slot_at(path, workload)
    assert slot is not None
    if not slot.models:
        for inside in ("x", 0):
            below = slot.below(inside)
            if below is not None and below.models:
                return fields_of(workload, (*path, inside))
        return {}
    for name, field in slot.fields.items():
        below_path = (*path, name)
        found[pattern(below_path)] = field
        found |= fields_of(workload, below_path)
    return found


def test_every_key_is_in_the_reference_and_no_other() -> None:
    assert sorted(ROWS) == sorted(fields())


def test_every_file_is_listed_with_what_it_is() -> None:
    written = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")
    assert written == listing(), "run python -m tests.file_list"
    without = [path for path in (ROOT / "paceline").rglob("*.py") if path.name != "__init__.py"]
    assert all(f"- `{path.name}`: " in written for path in without)


def test_defaults_are_true() -> None:
    for key, field in fields().items():
        shown = ROWS[key].strip(" `")
        default = field.default.value if isinstance(field.default, Enum) else field.default
        if field.is_required():
            assert shown == "required", key
        elif field.default_factory is not None:
            assert (shown, field.get_default(call_default_factory=True)) == ("{}", {}), key
        elif isinstance(default, BaseModel):
            assert shown == "", key
        elif default is None:
            assert shown == "none", key
        elif isinstance(default, dict):
            assert (shown, default) == ("{}", {}), key
        elif isinstance(default, tuple):
            assert (shown, default) == ("[]", ()), key
        elif isinstance(default, bool | str):
            assert shown == str(default).lower(), key
        elif isinstance(default, float):
            assert float(shown) == default, key
        else:
            assert parse_size(shown) == default, key


def test_the_example_is_valid(tmp_path: Path) -> None:
    example = re.search(r"```yaml\n(.*?)```", REFERENCE, re.DOTALL)
    assert example is not None
    (tmp_path / "t.yaml").write_text(example[1])
    assert check_topology(tmp_path / "t.yaml")[1] == []


def test_the_broken_example_prints_what_the_reference_shows(tmp_path: Path) -> None:
    text = re.search(r"```yaml\n(.*?)```", REFERENCE, re.DOTALL)
    assert text is not None
    broken = text[1]
    for old, new in (
        ("name: world-2\n", "name: my world\n"),
        ("ranks: 1, device: cpu, threads: 1", "ranks: 1, device: cpu, threds: 1"),
        ("late: {ranks: 1", "late: {ranks: 0"),
        ("sink, group: early", "sink, group: last"),
        ("to: decode}", "to: decod}"),
    ):
        assert old in broken
        broken = broken.replace(old, new, 1)
    (tmp_path / "broken.yaml").write_text(broken)
    found = [
        str(p).replace(f"{tmp_path}/", "") for p in check_topology(tmp_path / "broken.yaml", ["edges.4.inflght=2"])[1]
    ]
    shown = re.search(r"```\n(broken\.yaml.*?)```", REFERENCE, re.DOTALL)
    assert shown is not None
    assert found == shown[1].splitlines()
