"""Training resumes exactly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from paceline.stages.dit.config import DiTConfig
from paceline.stages.dit.network import load_dit
from zoo.world.batches import Recipe
from zoo.world.train import Trainer, TrainPlan, publish, run

CONFIG = DiTConfig(width=32, layers=1, heads=1)
PLAN = TrainPlan(steps=4, warmup=2, decay=2, map_from=2, bf16=False, recipe=Recipe(batch=2, frames=3))


def test_resumed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = Trainer(PLAN, CONFIG)
    half = Trainer(PLAN, CONFIG)
    for _ in range(4):
        whole.advance()
    half.advance()
    half.advance()
    half.save(tmp_path / "checkpoint.safetensors")
    resumed = Trainer(PLAN, CONFIG)
    resumed.load(tmp_path / "checkpoint.safetensors")
    assert resumed.step == 2
    resumed.advance()
    resumed.advance()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
        assert torch.equal(resumed.average[name], whole.average[name]), name
    assert not torch.equal(whole.model.head.weight, torch.zeros_like(whole.model.head.weight))


def test_a_run_leaves_weights_that_load(tmp_path: Path) -> None:
    trainer = Trainer(PLAN, CONFIG)
    run(trainer, tmp_path, save_every=2, score_every=100, target=None, score=lambda _: {"score": 1.0})
    model = load_dit(tmp_path / "weights.safetensors")
    assert torch.equal(model.head.weight, trainer.average["head.weight"])
    assert (tmp_path / "log.jsonl").read_text().count("score") == 1
    publish(trainer, tmp_path / "other.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoint.safetensors", "log.jsonl", "other.safetensors", "weights.safetensors"
    ]  # fmt: skip


def test_a_checkpoint_of_another_shape_is_refused(tmp_path: Path) -> None:
    Trainer(PLAN, CONFIG).save(tmp_path / "checkpoint.safetensors")
    with pytest.raises(ValueError, match="another network"):
        Trainer(PLAN, DiTConfig(width=64, layers=1, heads=2)).load(tmp_path / "checkpoint.safetensors")


def test_rate_warms_up_holds_and_falls() -> None:
    plan = TrainPlan(steps=1000, warmup=100, decay=200, rate=1.0)
    assert plan.rate_at(0) == pytest.approx(0.01)
    assert plan.rate_at(500) == 1.0
    assert plan.rate_at(900) == pytest.approx(0.5)
    assert plan.rate_at(1000) == 0.0
