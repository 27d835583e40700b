"""Train the world model: `python -m zoo.world.train --out RUN`, and with `--memory` its context memory, too.

Two phases in one run: flow matching for `--map-from` steps, then the flow map joins in. The learning rate warms up,
holds, and falls to zero over the last `--decay` steps, so a run can be extended or cut short by resuming it with
another `--steps`. A run folder holds `checkpoint.safetensors` (weights, averaged weights, optimiser state, step),
`log.jsonl` and `weights.safetensors` (the averaged weights, ready to serve). Resuming continues exactly: batches are
a function of seed and step, and there is no other randomness.

With `--memory` a run starts from the weights of `--start`, which has none. The memory is trained alone first
(`zoo/world/memory.py`); then the network learns to read it, on sequences of which two thirds are too short to show what
the memory holds, while what writes the memory stays as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from paceline.stages.dit.config import DiTConfig, GroundMemoryConfig
from paceline.stages.dit.network import DiT, load_dit, save_dit
from zoo.world import flowmap
from zoo.world.batches import Recipe, draw_batch
from zoo.world.evaluate import memory_score, quick_score
from zoo.world.flowmap import Sequences, loss
from zoo.world.memory import LENGTHS, Histories, MemoryPlan, rehearse

__all__ = ["TrainPlan", "Trainer", "main", "publish", "run"]


@dataclass(frozen=True, slots=True)
class TrainPlan:
    """How a run goes. Steps count optimiser steps."""

    steps: int = 4200
    warmup: int = 100
    decay: int = 1250
    map_from: int = 1100
    map_share: float = 0.375
    rate: float = 2e-3
    average: float = 0.995
    seed: int = 1
    bf16: bool = True
    recipe: Recipe = field(default_factory=Recipe)
    memory: MemoryPlan | None = None
    """How the memory is trained; None for a network without one"""
    memory_rate: float = 3e-3
    """Learning rate of what reads the memory into the network"""

    def rate_at(self, step: int) -> float:
        """Learning rate of a step."""
        rise = min(1.0, (step + 1) / self.warmup)
        fall = min(1.0, max(0, self.steps - step) / max(1, self.decay))
        return self.rate * rise * fall

    def recipe_at(self, step: int) -> Recipe:
        """How the batch of a step is drawn."""
        recipe = replace(self.recipe, map_share=self.map_share) if step >= self.map_from else self.recipe
        if self.memory is not None:
            batch, frames = (16, LENGTHS[0]) if step % 3 else (6, LENGTHS[1])
            recipe = replace(recipe, batch=batch, frames=frames)
        return recipe


class Trainer:
    """A model, its averaged weights and its optimiser, `step` steps into a plan."""

    def __init__(self, plan: TrainPlan, config: DiTConfig, device: str = "cpu", start: DiT | None = None) -> None:
        """`start`: a network without a memory whose weights are taken."""
        self.plan, self.device, self.step = plan, device, 0
        self.histories: Histories | None = None
        with torch.random.fork_rng():  # torch.nn draws first weights from the global generator
            torch.manual_seed(plan.seed)
            self.model = DiT(config).to(device)
        if start is not None:
            self.model.load_state_dict(self.model.state_dict() | start.state_dict())
        self._train_writing(False)
        self.average = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        reading = set() if self.model.memory is None else set(self.model.memory.read.parameters())
        trained = [p for p in self.model.parameters() if p.requires_grad and p not in reading]
        groups = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": 0.01, "share": 1.0},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0, "share": 1.0},
        ]
        if reading:
            mine = [p for p in self.model.parameters() if p in reading]
            groups.append({"params": mine, "weight_decay": 0.0, "share": plan.memory_rate / plan.rate})
        self.optimizer = torch.optim.AdamW(groups, lr=plan.rate, betas=(0.9, 0.97))

    def advance(self) -> tuple[Tensor, Tensor, Sequences]:
        """One step; returns the loss, the squared error of every frame `[B, F]`, and the batch."""
        plan = self.plan
        draw = draw_batch if self.histories is None else self.histories.batch
        batch = draw(plan.recipe_at(self.step), plan.seed, self.step).to(self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = plan.rate_at(self.step) * group["share"]
        total, error = loss(self.model, batch, plan.bf16)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        # A young average forgets faster, or it would drag the first weights along.
        keep = min(plan.average, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                self.average[name].lerp_(value, 1 - keep)
        self.step += 1
        return total.detach(), error, batch

    def rehearse(self, note: Callable[[dict[str, float]], None]) -> None:
        """Train the memory alone, before the first step."""
        if self.model.memory is None or self.plan.memory is None:
            raise ValueError("the network has no memory to train")
        self._train_writing(True)
        rehearse(self.model.memory, self.plan.memory, note)
        self._train_writing(False)
        for name, value in self.model.state_dict().items():
            self.average[name].copy_(value)

    def _train_writing(self, trained: bool) -> None:
        """Whether what writes the memory, if there is one, is trained."""
        if self.model.memory is not None:
            for part in (self.model.memory.value, self.model.memory.gate):
                part.requires_grad_(trained)

    def averaged(self) -> DiT:
        """A model with the averaged weights, for serving."""
        model = DiT(self.model.config).to(self.device)
        model.load_state_dict(self.average)
        return model.eval().requires_grad_(False)

    def save(self, path: Path) -> None:
        """Write everything that resuming needs, atomically."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{name}.{key}"] = value
        metadata = {"step": str(self.step), "plan": json.dumps(asdict(self.plan))}
        metadata["dit_config"] = json.dumps(asdict(self.model.config))
        fresh = path.with_suffix(".fresh")
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, str(fresh), metadata=metadata)
        os.replace(fresh, path)

    def load(self, path: Path) -> None:
        """Continue from a file written by `save`; the plan stays the one given to the constructor.

        Raises `ValueError` where the file is for a network of another shape.
        """
        with safe_open(str(path), framework="pt", device=self.device) as handle:
            metadata = handle.metadata() or {}
            if metadata.get("dit_config") != json.dumps(asdict(self.model.config)):
                raise ValueError(f"{path} is for another network than this run's; give a fresh --out folder")
            tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 (not a mapping)
        self.step = int(metadata["step"])
        self.model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        self.average = {k[8:]: v for k, v in tensors.items() if k.startswith("average.")}
        for name, parameter in self.model.named_parameters():
            head = f"optimizer.{name}."
            state = {k[len(head) :]: v for k, v in tensors.items() if k.startswith(head)}
            if state:
                self.optimizer.state[parameter] = state


def publish(trainer: Trainer, path: Path) -> None:
    """Write the averaged weights with `save_dit`, atomically: a reader sees the old file or the new one."""
    fresh = path.with_suffix(".fresh")
    save_dit(trainer.averaged(), fresh, {"step": str(trainer.step)})
    fresh.chmod(0o644)  # safetensors writes files for their owner only
    os.replace(fresh, path)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of the trainer."""
    parser = argparse.ArgumentParser(prog="python -m zoo.world.train", description="Train the embedded world model.")
    default, shape = TrainPlan(), DiTConfig()
    parser.add_argument("--out", type=Path, required=True, help="run folder; resumes where it holds a checkpoint")
    parser.add_argument("--steps", type=int, default=default.steps)
    parser.add_argument("--decay", type=int, default=default.decay)
    parser.add_argument("--map-from", type=int, default=default.map_from)
    parser.add_argument("--map-share", type=float, default=default.map_share)
    parser.add_argument("--rate", type=float, default=default.rate)
    parser.add_argument("--batch", type=int, default=default.recipe.batch)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--width", type=int, default=shape.width)
    parser.add_argument("--layers", type=int, default=shape.layers)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-bf16", action="store_true")
    parser.add_argument("--compile", action="store_true", help="a quarter faster on a CPU with a C++ compiler")
    parser.add_argument("--save-every", type=int, default=200)
    parser.add_argument("--score-every", type=int, default=400)
    parser.add_argument("--publish", type=Path, default=None, help="write the averaged weights here too at every score")
    parser.add_argument("--memory", action="store_true", help="train a context memory into the network of --start")
    parser.add_argument("--start", type=Path, default=Path(__file__).parent / "weights.safetensors")
    parser.add_argument("--memory-steps", type=int, default=MemoryPlan().steps, help="of the memory alone")
    parser.add_argument("--walks", type=int, default=MemoryPlan().walks, help="long walks that are learnt from")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.compile:
        flowmap.joint_forward = torch.compile(flowmap.joint_forward)
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint = args.out / "checkpoint.safetensors"
    if not args.memory:
        plan = TrainPlan(
            steps=args.steps, decay=args.decay, map_from=args.map_from, map_share=args.map_share, rate=args.rate,
            seed=args.seed, bf16=not args.no_bf16, recipe=Recipe(batch=args.batch),
        )  # fmt: skip
        trainer = Trainer(plan, DiTConfig(width=args.width, layers=args.layers, noise="ground"), args.device)
        if checkpoint.is_file():
            trainer.load(checkpoint)
        run(trainer, args.out, args.save_every, args.score_every, args.publish)
        return
    memory = MemoryPlan(steps=args.memory_steps, walks=args.walks, seed=args.seed)
    plan = TrainPlan(
        steps=args.steps, warmup=30, decay=args.decay, map_from=0, map_share=args.map_share, rate=args.rate,
        average=0.99, seed=args.seed, bf16=not args.no_bf16, memory=memory,
    )  # fmt: skip
    start = load_dit(args.start, args.device)
    trainer = Trainer(plan, replace(start.config, memory=GroundMemoryConfig()), args.device, start)
    if checkpoint.is_file():
        trainer.load(checkpoint)
    else:
        trainer.rehearse(show)
        trainer.save(checkpoint)
    if trainer.model.memory is not None:
        trainer.histories = Histories.walk(trainer.model.memory, memory)
    run(trainer, args.out, args.save_every, args.score_every, args.publish, memory_score)


def show(record: dict[str, float]) -> None:
    """Print a line of the log."""
    print("  ".join(f"{k} {v:.4g}" for k, v in record.items()), flush=True)


def run(
    trainer: Trainer,
    out: Path,
    save_every: int,
    score_every: int,
    target: Path | None,
    score: Callable[[DiT], dict[str, float]] = quick_score,
) -> None:
    """Train to the end of the plan, logging, saving and scoring on the way."""
    started, first = time.monotonic(), trainer.step
    sums: dict[str, list[float]] = {}
    with (out / "log.jsonl").open("a", encoding="utf-8") as log:

        def note(record: dict[str, float]) -> None:
            log.write(json.dumps(record) + "\n")
            log.flush()
            show(record)

        while trainer.step < trainer.plan.steps:
            _, error, batch = trainer.advance()
            noisy = batch.t > 0
            sums.setdefault("loss", []).append(float(error[noisy].mean()))
            known = noisy & (batch.t > 0.9) & (batch.r == batch.t)
            if known.any():
                sums.setdefault("loss_noise", []).append(float(error[known].mean()))
            if trainer.step % 25 == 0:
                seconds = (time.monotonic() - started) / (trainer.step - first)
                means = {k: sum(v) / len(v) for k, v in sums.items()}
                note({"step": trainer.step, **means, "seconds_per_step": seconds})
                sums.clear()
            last = trainer.step == trainer.plan.steps
            if trainer.step % save_every == 0 or last:
                trainer.save(out / "checkpoint.safetensors")
                publish(trainer, out / "weights.safetensors")
            if trainer.step % score_every == 0 or last:
                note({"step": trainer.step, **score(trainer.averaged())})
                if target is not None:
                    publish(trainer, target)


if __name__ == "__main__":
    main()
