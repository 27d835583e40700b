"""Training resumes exactly, its attention is attention, and what it leaves is what Transformers loads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from zoo.code.attention import causal_attention
from zoo.code.batches import Windows
from zoo.code.distill import Recipe, Teacher, divergence
from zoo.code.models import Shape, build, load, publish
from zoo.code.objective import Imitation, Language, Objective, fast
from zoo.code.tokenizer import train_tokenizer
from zoo.code.train import Trainer, TrainPlan, run
from zoo.folder import frozen

SHAPE = Shape(width=64, layers=2, heads=2, kv_heads=1, inner=64, vocabulary=300)
PLAN = TrainPlan(steps=6, warmup=2, decay=2)
STREAM = np.random.default_rng(0).integers(0, 300, 700)
RECIPE = Recipe(prompt=8, block=2, reads=2)


def language() -> Objective:
    return Language(Windows(STREAM, 2, 32, seed=1), bf16=False)


def imitation(share: float = 0.5) -> Objective:
    recipe = Recipe(prompt=8, block=2, reads=2, share=share)
    teacher = Teacher(frozen(build(SHAPE, 9)), Windows(STREAM, 2, 32, seed=1), recipe)
    return Imitation(teacher, fast(frozen(build(SHAPE, 9)), compiled=False), bf16=False)


@pytest.mark.parametrize("objective", [language, imitation])
def test_resumed_run_ends_with_the_same_weights(tmp_path: Path, objective: Callable[[], Objective]) -> None:
    whole, half = Trainer(PLAN, SHAPE), Trainer(PLAN, SHAPE)
    one, two = objective(), objective()
    losses = [float(whole.advance(one)) for _ in range(6)]
    assert [float(half.advance(two)) for _ in range(3)] == losses[:3]
    half.save(tmp_path / "checkpoint.safetensors")
    resumed = Trainer(PLAN, SHAPE)
    resumed.load(tmp_path / "checkpoint.safetensors")
    assert resumed.step == 3
    again = objective()  # in the middle of a block that the teacher wrote
    assert [float(resumed.advance(again)) for _ in range(3)] == losses[3:]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
        assert torch.equal(resumed.average[name], whole.average[name]), name
    first = build(SHAPE, PLAN.seed).state_dict()
    assert all(not torch.equal(first[name], value) for name, value in whole.model.state_dict().items())


def test_a_checkpoint_of_another_shape_is_refused_and_weights_alone_start_anew(tmp_path: Path) -> None:
    trainer = Trainer(PLAN, SHAPE)
    trainer.advance(language())
    trainer.save(tmp_path / "checkpoint.safetensors")
    with pytest.raises(ValueError, match="another network"):
        Trainer(PLAN, Shape(64, 1, 1, 1, 64, 300)).load(tmp_path / "checkpoint.safetensors")
    fresh = Trainer(PLAN, SHAPE)
    fresh.load(tmp_path / "checkpoint.safetensors", weights_only=True)
    assert fresh.step == 0
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(fresh.model.state_dict()[name], trainer.average[name])
    fresh.advance(language())  # the average that was loaded and the one that moves are not one tensor
    assert not torch.equal(fresh.model.state_dict()[name], fresh.average[name])


def test_rate_warms_up_holds_and_falls() -> None:
    plan = TrainPlan(steps=1000, warmup=100, decay=200, rate=1.0)
    assert [plan.rate_at(step) for step in (0, 500, 900, 1000)] == pytest.approx([0.01, 1.0, 0.5, 0.0])


def test_drafter_comes_closer_to_its_target() -> None:
    trainer = Trainer(TrainPlan(steps=60, warmup=5, decay=20, rate=4e-3), Shape(64, 1, 1, 1, 64, 300))
    objective = imitation(share=0.5)
    shares: list[float] = []
    for _ in range(60):
        trainer.advance(objective)
        shares.append(objective.report["acceptance"])
    assert sum(shares[-10:]) > sum(shares[:10])
    assert objective.report["loss"] > 0


def test_divergence_is_total_variation_and_kl() -> None:
    target, draft = torch.tensor([[0.7, 0.2, 0.1]]).log(), torch.tensor([[0.3, 0.3, 0.4]]).log()
    loss, variation = divergence(target, draft, 1.0, kl=0.0)
    assert float(variation) == pytest.approx(0.4)
    assert float(loss) == pytest.approx(0.4)
    with_kl, _ = divergence(target, draft, 1.0, kl=1.0)
    assert float(with_kl - loss) == pytest.approx(0.7 * np.log(7 / 3) + 0.2 * np.log(2 / 3) + 0.1 * np.log(1 / 4))
    assert float(divergence(target / 2, draft / 2, 0.5, kl=0.3)[0]) == pytest.approx(
        float(loss + 0.3 * (with_kl - loss))
    )


def test_half_of_a_batch_is_what_the_target_wrote() -> None:
    windows = Windows(STREAM, 4, 32, seed=1)
    teacher = Teacher(frozen(build(SHAPE, 9)), windows, RECIPE)
    batches = [teacher.batch(step) for step in range(6)]
    for step, batch in enumerate(batches):
        assert batch.shape == (4, 32)
        assert batch[:2].tolist() == windows.at(step)[:2].tolist()
    assert batches[0][2:].tolist() == batches[2][2:].tolist()  # two steps are written, and read twice
    assert batches[0][2:].tolist() != batches[1][2:].tolist()
    assert batches[0][2:].tolist() != batches[4][2:].tolist()
    assert batches[0][2:, :8].tolist() == windows.at(0)[2:, :8].tolist()  # begins like the text
    assert Teacher(frozen(build(SHAPE, 9)), windows, RECIPE).batch(5).tolist() == batches[5].tolist()


@pytest.mark.parametrize(("heads", "kv_heads", "length"), [(3, 1, 300), (4, 2, 128), (2, 2, 7)])
def test_attention_in_blocks_equals_the_plain_one(heads: int, kv_heads: int, length: int) -> None:
    draw = torch.Generator().manual_seed(0)
    q = torch.randn(2, heads, length, 8, generator=draw, dtype=torch.float64)
    k, v = (torch.randn(2, kv_heads, length, 8, generator=draw, dtype=torch.float64) for _ in range(2))
    plain = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(causal_attention(q, k, v, 0.3), plain, rtol=1e-5, atol=1e-6)  # scores are float32


def test_a_run_leaves_a_folder_that_transformers_loads(tmp_path: Path) -> None:
    trainer, tokenizer = Trainer(PLAN, SHAPE), train_tokenizer(["def f(x):\n    return x\n"], size=300)

    def save(trainer: Trainer) -> None:
        publish(SHAPE, trainer.average, tokenizer, tmp_path / "model", {"step": str(trainer.step)})

    run(trainer, language(), tmp_path, save, save_every=2, score_every=3, score=lambda _: {"score": 1.0})
    assert (tmp_path / "log.jsonl").read_text().count("score") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.safetensors", "log.jsonl", "model"]
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"
    ]  # fmt: skip
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", trust_remote_code=False, use_safetensors=True)
    ours = load(tmp_path / "model")
    tokens = Windows(STREAM, 2, 32, seed=3).at(0)
    with torch.no_grad():
        logits = theirs(input_ids=tokens).logits
        assert logits.dtype == torch.float32
        assert torch.equal(logits, ours(input_ids=tokens).logits)
        # The file is bfloat16, so it gives the trainer's logits but for 8 bits of precision.
        torch.testing.assert_close(logits, trainer.averaged()(input_ids=tokens).logits, rtol=0.02, atol=0.02)
        fast_logits = fast(load(tmp_path / "model"), compiled=False)(input_ids=tokens, use_cache=False).logits
        torch.testing.assert_close(logits, fast_logits, rtol=1e-4, atol=1e-5)
    assert AutoTokenizer.from_pretrained(tmp_path / "model").encode("def f(x)") == tokenizer.encode("def f(x)").ids
    with safe_open(str(tmp_path / "model" / "model.safetensors"), framework="pt") as handle:
        metadata = handle.metadata()
    assert metadata["step"] == "6"
    assert json.loads(metadata["shape"])["layers"] == 2
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load(tmp_path / "nothing")
