"""Train a model to recall the pairs of its prompt: `python -m zoo.mqar.train --kind gated_delta --out RUN`.

A run folder holds `checkpoint.safetensors` (weights, optimiser state, step), `log.jsonl`, and `model/`, which
`paceline generate` reads. The same command resumes a run, exactly: what a step reads is a function of seed and step.
Answers have full weight in the loss; the other tokens behind the pairs have little, so that the model goes on with text
of this kind after an answer.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from zoo.mqar.evaluate import recalled
from zoo.mqar.models import KINDS, Shape, build, publish
from zoo.mqar.recall import SETTINGS, Batch, draw

__all__ = ["Plan", "Trainer", "main"]

_TOKENS = 2048
"""Of a batch; long texts come in smaller batches."""
_SHARES = (3, 2, 2, 2, 1)
"""How often each of `SETTINGS` is drawn."""
_OTHER = 0.05
"""Weight of the loss of tokens that are no answers."""
_SAVE_S = 60.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How a run goes. Steps count optimiser steps."""

    steps: int = 1000
    warmup: int = 30
    rate: float = 4e-3
    weight_decay: float = 0.1
    seed: int = 1

    def rate_at(self, step: int) -> float:
        """Learning rate of a step: it rises, and falls along a cosine."""
        rise = min(1.0, (step + 1) / self.warmup)
        return self.rate * rise * 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.steps)))


class Trainer:
    """A model and its optimiser, `step` steps into a plan."""

    def __init__(self, plan: Plan, shape: Shape) -> None:
        self.plan, self.shape, self.step = plan, shape, 0
        self.model = build(shape, plan.seed)
        named = list(self.model.named_parameters())
        matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name and "conv" not in name]
        chosen = {id(p) for p in matrices}
        groups = [
            {"params": matrices, "weight_decay": plan.weight_decay},
            {"params": [p for _, p in named if id(p) not in chosen], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=plan.rate, betas=(0.9, 0.98))

    def batch(self) -> Batch:
        """What the next step reads."""
        turn = torch.Generator().manual_seed((self.plan.seed << 32) + self.step)
        index = int(torch.multinomial(torch.tensor(_SHARES, dtype=torch.float32), 1, generator=turn))
        return draw(SETTINGS[index], _TOKENS // SETTINGS[index].length, (self.plan.seed, self.step))

    def advance(self) -> float:
        """One step; returns the loss of the answers, in nats."""
        batch = self.batch()
        ids, asked = torch.from_numpy(batch.ids), torch.from_numpy(batch.asked)
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.rate_at(self.step)
        hidden = self.model.model(input_ids=ids, use_cache=False).last_hidden_state
        answers = cross_entropy(self.model.lm_head(hidden[asked]), ids.roll(-1, 1)[asked])
        pairs = int(asked[0].sum())
        rest = ~asked
        rest[:, : 2 * pairs - 1] = False
        rest[:, -1] = False
        # A part of them will do.
        rest &= (torch.arange(ids.shape[1]) + self.step) % 4 == 0
        loss = answers + _OTHER * cross_entropy(self.model.lm_head(hidden[rest]), ids.roll(-1, 1)[rest])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        return float(answers.detach())

    def save(self, path: Path) -> None:
        """Write everything that resuming needs, atomically."""
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.model.named_parameters()}
        tensors: dict[str, Tensor] = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        for parameter, state in self.optimizer.state.items():
            tensors |= {f"optimizer.{names[parameter]}.{k}": v for k, v in state.items()}
        metadata = {"step": str(self.step), "plan": json.dumps(asdict(self.plan))}
        metadata["shape"] = json.dumps(asdict(self.shape))
        fresh = path.with_suffix(".fresh")
        # Cloned, because embedding and output are one tensor, which safetensors would refuse.
        save_file({k: v.detach().clone() for k, v in tensors.items()}, str(fresh), metadata=metadata)
        os.replace(fresh, path)

    def load(self, path: Path) -> None:
        """Continue from a file written by `save`; the plan stays the one given to the constructor. Raises `ValueError`
        where the file is for a network of another shape."""
        with safe_open(str(path), framework="pt") as handle:
            metadata = handle.metadata() or {}
            if metadata.get("shape") != json.dumps(asdict(self.shape)):
                raise ValueError(f"{path} is for another network than this run's; give a fresh --out folder")
            tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 (not a mapping)
        self.step = int(metadata["step"])
        self.model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        for name, parameter in self.model.named_parameters():
            head = f"optimizer.{name}."
            self.optimizer.state[parameter] = {k[len(head) :]: v for k, v in tensors.items() if k.startswith(head)}


def run(trainer: Trainer, out: Path, score_every: int = 100) -> dict[int, float]:
    """Train to the end of the plan; returns what is recalled by number of pairs."""
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / "checkpoint.safetensors"
    if checkpoint.is_file():
        trainer.load(checkpoint)
    saved, total, count = time.monotonic(), 0.0, 0
    with (out / "log.jsonl").open("a", encoding="utf-8") as log:
        while trainer.step < trainer.plan.steps:
            total, count = total + trainer.advance(), count + 1
            if trainer.step % score_every == 0 or trainer.step == trainer.plan.steps:
                found = recalled(trainer.model, texts=16)
                line = {"step": trainer.step, "loss": round(total / count, 4), "recalled": found}
                log.write(json.dumps(line) + "\n")
                log.flush()
                print(json.dumps(line), flush=True)
                total = count = 0
            if time.monotonic() - saved > _SAVE_S:
                trainer.save(checkpoint)
                saved = time.monotonic()
    trainer.save(checkpoint)
    found = recalled(trainer.model, texts=256)
    metadata = {"step": str(trainer.step), "plan": json.dumps(asdict(trainer.plan)), "recalled": json.dumps(found)}
    publish(trainer.shape, trainer.model.state_dict(), out / "model", metadata)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m zoo.mqar.train", description=__doc__)
    plan, shape = Plan(), Shape()
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; one that exists is resumed")
    parser.add_argument("--kind", choices=KINDS, default=shape.kind, help="kind of the layers (zoo.mqar.models)")
    parser.add_argument("--size", type=int, default=shape.size, help="size of the keys and values of a head")
    parser.add_argument("--steps", type=int, default=plan.steps)
    parser.add_argument("--rate", type=float, default=plan.rate, help="learning rate")
    parser.add_argument("--seed", type=int, default=plan.seed)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args(argv)
    for name in ("size", "steps", "threads"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} is {getattr(arguments, name)}; it has to be at least 1")
    torch.set_num_threads(arguments.threads)
    shape = Shape(arguments.kind, arguments.size)
    trainer = Trainer(Plan(arguments.steps, rate=arguments.rate, seed=arguments.seed), shape)
    try:
        found = run(trainer, arguments.out)
    except ValueError as error:
        parser.error(str(error))
    print(json.dumps({"state_bytes": shape.state_bytes, "recalled": found}))


if __name__ == "__main__":
    main()
