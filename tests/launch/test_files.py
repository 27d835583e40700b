"""Files that a topology names: what is wrong with them is said before a process starts, with exit code 2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import zmq.auth
from safetensors.torch import load_file, save_file

from paceline.stages.dit.config import DiTConfig
from paceline.stages.dit.network import save_dit
from tests.harness import ROOT
from tests.launch.test_cli import invoke
from tests.stages.conftest import random_model

WORLD = str(ROOT / "topologies" / "world-1.yaml")
TIERED = str(ROOT / "topologies" / "world-2-tiers.yaml")
ALL = str(ROOT / "topologies" / "world-3-all.yaml")
SPECULATE = str(ROOT / "topologies" / "speculate-2.yaml")
SMALL = DiTConfig(width=64, layers=2, heads=2)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "good.safetensors"
    save_dit(random_model(SMALL), path)
    return path


def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*arguments: object, **options: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr("subprocess.Popen.__init__", started)


def check_refused(path: str, setting: str, message: str, *, run: bool = True, validated: bool = True) -> None:
    for command, due in (("validate", validated), ("run", run)):
        code, output, errors = invoke(command, path, "--set", setting)
        if due:
            assert code == 2, (command, output, errors)
            assert message in output + errors
            assert "Traceback" not in errors


def rewritten(good: Path, folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor] | None = None) -> Path:
    """The same weights under a changed configuration, or with other tensors."""
    state = load_file(str(good)) | (tensors or {})
    fields = {name: getattr(SMALL, name) for name in SMALL.__dataclass_fields__} | config
    path = folder / "changed.safetensors"
    save_file(state, str(path), metadata={"dit_config": json.dumps(fields)})
    return path


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"heads": 0}, "heads is 0"),
        ({"width": 0}, "width is 0"),
        ({"layers": -1}, "layers is -1"),
        ({"layers": 10**15}, "layers is 1000000000000000"),
        ({"layers": 10**6}, "has 1000000 layers"),
        ({"layers": 3}, "is missing"),
        ({"layers": 1}, "is none of its weights"),
        ({"torus": 0}, "torus is 0"),
        ({"max_distance": 256}, "max_distance is 256"),
        ({"grid_y": 4}, "'place' has shape [64, 64], but dit_config makes it [32, 64]"),
        ({"time_frequencies": []}, "rotate"),
        ({"width": "wide"}, "Expected `int`"),
        ({"noise": "pink"}, "Invalid enum value"),
    ],
)
def test_a_configuration_that_can_not_be(good: Path, tmp_path: Path, config: dict[str, Any], message: str) -> None:
    path = rewritten(good, tmp_path, config)
    check_refused(WORLD, f"model.weights={path}", message)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "policy=oracle",
            "tiers.late.policy: is 'oracle'; write attention-mass, heavy-hitter, lru, window or slab",
        ),
        ("options.depth=3", "tiers.late.options: policy slab: Slab.__init__() got an unexpected keyword argument"),
    ],
)
def test_a_tier_policy_that_there_is_not(setting: str, message: str) -> None:
    check_refused(TIERED, f"tiers.late.{setting}", message)


def test_weights_of_another_world(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_dit(random_model(DiTConfig(width=64, layers=1, heads=2, grid_y=4)), path)
    check_refused(WORLD, f"model.weights={path}", "whose grid_y is 4, and the embedded one has 8")


def test_weights_that_are_missing_cut_or_misshapen(good: Path, tmp_path: Path) -> None:
    check_refused(WORLD, f"model.weights={tmp_path}/none", "there is no file")
    check_refused(WORLD, f"model.weights={tmp_path}", "there is no file")
    cut = tmp_path / "cut.safetensors"
    data = good.read_bytes()
    for size in (0, 7, 8, 100, len(data) // 2, len(data) - 1):
        cut.write_bytes(data[:size])
        check_refused(WORLD, f"model.weights={cut}", "holds no world model")
    misshapen = rewritten(good, tmp_path, {}, {"head.bias": torch.zeros(47)})
    check_refused(WORLD, f"model.weights={misshapen}", "'head.bias' has shape [47]")
    integers = rewritten(good, tmp_path, {}, {"head.bias": torch.zeros(48, dtype=torch.int32)})
    check_refused(WORLD, f"model.weights={integers}", "'head.bias' is of type I32")
    deep = b"[" * 100_000
    cut.write_bytes(len(deep).to_bytes(8, "little") + deep)
    check_refused(WORLD, f"model.weights={cut}", "holds no world model")


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_weights_that_are_not_finite(good: Path, tmp_path: Path, wrong: float, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = load_file(str(good))["blocks.0.qkv.weight"]
    weight[5, 5] = wrong
    path = rewritten(good, tmp_path, {}, {"blocks.0.qkv.weight": weight})
    no_process(monkeypatch)
    message = "the weight 'blocks.0.qkv.weight' holds NaN or infinity"
    check_refused(WORLD, f"model.weights={path}", message, validated=False)
    code, _, errors = invoke("trace", "record", WORLD, "--out", str(tmp_path / "t"), "--set", f"model.weights={path}")
    assert (code, message in errors) == (2, True), errors


def test_validate_names_the_key() -> None:
    code, output, _ = invoke("validate", TIERED, "--set", "model.weights=/no/such")
    assert (code, output) == (
        2,
        "--set model.weights: model.weights: there is no file /no/such; give a .safetensors file or zoo:world\n",
    )


def test_budgets_that_hold_nothing() -> None:
    check_refused(TIERED, "tiers.early.hbm=1", "is too little for 2 blocks")
    code, output, _ = invoke("validate", SPECULATE, "--set", "tiers={verifier: {hbm: 1}}")
    assert code == 2 and "tiers.verifier" in output


def test_a_context_memory_counts_in_the_budget() -> None:
    """Two blocks of each layer of 16 tokens take 128 KiB, and the state of the shipped memory 104 KiB."""
    least = 2 * 4 * 2 * 16 * 128 * 4 + 4 * 4 * 512 * 13
    check_refused(ALL, f"tiers.first.hbm={least - 1}", f"and for context memories of 104 KiB; write {least} or more")
    # The others hold no memory: for them the blocks are enough.
    code, output, _ = invoke("validate", ALL, "--set", f"tiers.first.hbm={least}", "--set", "tiers.second.hbm=131072")
    assert code == 0, output


def test_a_language_model_that_is_missing() -> None:
    code, output, _ = invoke("validate", SPECULATE, "--set", "model.target=/no/such")
    assert code == 2 and "/no/such: no such folder" in output


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["drafter=oracle"], "speculation.drafter: is 'oracle'; write model, ngram or none"),
        (["drafter=ngram", "hedge=2"], "speculation.hedge: the drafter ngram knows no second choice to hedge with; "
                                       "write hedge: 0 or auto"),
        (["drafter=ngram", "options.longest=0"], "speculation.options: drafter ngram: longest is 0; it has to be a "
                                                 "whole number from 1 to 64; write options that the drafter takes"),
        (["drafter=ngram", "options.depth=2"], "speculation.options: drafter ngram: "),
        (["options.longest=2"], "speculation.options: drafter model: "),
    ],
)  # fmt: skip
def test_a_drafter_that_there_is_not_or_that_can_not_do_it(settings: list[str], message: str) -> None:
    sets = [f"--set=speculation.{setting}" for setting in settings]
    for command in (["validate", SPECULATE], ["plan", SPECULATE], ["generate", SPECULATE, "--prompt", "a"]):
        code, output, errors = invoke(*command, *sets)
        assert code == 2, (command, output, errors)
        assert message in output + errors
        assert "Traceback" not in errors


def test_a_drafter_without_a_model_has_no_tiers(tmp_path: Path) -> None:
    file = tmp_path / "text.yaml"
    text = Path(SPECULATE).read_text(encoding="utf-8")
    file.write_text(
        text.replace("speculation: {", "speculation: {drafter: ngram, ") + "tiers: {drafter: {hbm: 1MiB}}\n"
    )
    code, output, _ = invoke("validate", str(file))
    line = file.read_text().splitlines().index("tiers: {drafter: {hbm: 1MiB}}") + 1
    assert code == 2
    assert (
        f"{file}:{line}: tiers.drafter: a drafter of kind ngram holds no KV; remove them or write speculation.drafter: "
        "model"
    ) in output


def curve(folder: Path) -> tuple[Path, Path]:
    allow = folder / "allow"
    allow.mkdir()
    public, secret = zmq.auth.create_certificates(folder, "me")
    Path(public).rename(allow / "me.key")
    Path(secret).chmod(0o600)
    return Path(secret), allow


def test_curve_files_that_are_unfit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret, allow = curve(tmp_path)
    no_process(monkeypatch)
    two = str(ROOT / "topologies" / "world-2-zmq.yaml")

    def setting(secret: Path, allow: Path) -> str:
        return f"network.curve={{secret: {secret}, allow: {allow}}}"

    code, output, _ = invoke("validate", two, "--set", setting(secret, allow))
    assert code == 0, output
    check_refused(two, setting(tmp_path / "none", allow), "network.curve")
    check_refused(two, setting(secret, tmp_path / "none"), "no .key file")
    key = allow / "me.key"
    text = key.read_bytes()
    for wrong in (b"", b"\xff\xfe\x00", text.replace(b"public-key", b"publik-key"), text[:-12], b"[" * 5000):
        key.write_bytes(wrong)
        check_refused(two, setting(secret, allow), "network.curve")
    key.write_bytes(text)
    secret.chmod(0o644)
    check_refused(two, setting(secret, allow), "chmod 600")
    code, _, errors = invoke("generate", SPECULATE, "--prompt", "a", "--set", setting(secret, allow))
    assert code == 2 and "chmod 600" in errors, errors
