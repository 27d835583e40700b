"""Train the code models: `python -m zoo.code.train --model target --out RUN`, then the drafter with `--teacher`.

The target learns to predict the next token. The drafter learns that too, or, given the folder of a target, to give each
token the target's probability (`distill`). Matrices of the layers are trained by Muon (Jordan et al. 2024, scaled as in
Liu et al. 2502.16982), everything else by AdamW at the same rate. The rate warms up, holds, and falls to zero over the
last `--decay` steps, so a run can be extended or cut short by resuming it with another `--steps`. A run folder holds
`checkpoint.safetensors` (weights, averaged weights, optimiser state, step), `log.jsonl`, and `model/`: the averaged
weights with tokenizer and configuration, as Transformers loads them. Resuming continues exactly: what a step reads is
a function of seed and step.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaForCausalLM

from zoo.code.batches import Windows
from zoo.code.corpus import fingerprint, stdlib
from zoo.code.distill import Recipe, Teacher
from zoo.code.likelihood import bits
from zoo.code.models import DRAFT, TARGET, Shape, build, load, publish
from zoo.code.objective import Imitation, Language, Objective, fast
from zoo.code.tokenizer import load_tokenizer, token_stream, train_tokenizer
from zoo.folder import frozen

__all__ = ["TrainPlan", "Trainer", "main", "run"]


@dataclass(frozen=True, slots=True)
class TrainPlan:
    """How a run goes. Steps count optimiser steps."""

    steps: int = 6000
    warmup: int = 100
    decay: int = 2000
    rate: float = 4e-3
    weight_decay: float = 0.05
    average: float = 0.995
    seed: int = 1

    def rate_at(self, step: int) -> float:
        """Learning rate of a step."""
        rise = min(1.0, (step + 1) / self.warmup)
        fall = min(1.0, max(0, self.steps - step) / max(1, self.decay))
        return self.rate * rise * fall


class Trainer:
    """A model, its averaged weights and its optimisers, `step` steps into a plan."""

    def __init__(self, plan: TrainPlan, shape: Shape, device: str = "cpu", compiled: bool = False) -> None:
        self.plan, self.shape, self.device, self.step = plan, shape, device, 0
        self.model = fast(build(shape, plan.seed, device), compiled)
        self.average = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        named = list(self.model.named_parameters())
        matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
        others = [p for name, p in named if p.ndim != 2 or "embed" in name]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(
                matrices, lr=plan.rate, weight_decay=plan.weight_decay, adjust_lr_fn="match_rms_adamw"
            ),
            torch.optim.AdamW(others, lr=plan.rate, betas=(0.9, 0.97), weight_decay=0.0),
        ]  # fmt: skip

    def advance(self, objective: Objective) -> Tensor:
        """One step; returns its loss."""
        rate = self.plan.rate_at(self.step)
        loss = objective(self.model, self.step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        # A young average forgets faster, or it would drag the first weights along.
        keep = min(self.plan.average, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                self.average[name].lerp_(value, 1 - keep)
        self.step += 1
        return loss.detach()

    def averaged(self) -> LlamaForCausalLM:
        """A plain model with the averaged weights."""
        model = build(self.shape, 0, self.device)
        model.load_state_dict(self.average)
        return frozen(model)

    def _states(self) -> dict[str, dict[str, Tensor]]:
        """Every parameter's optimiser state, by the parameter's name."""
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.model.named_parameters()}
        return {names[p]: state for optimizer in self.optimizers for p, state in optimizer.state.items()}

    def save(self, path: Path) -> None:
        """Write everything that resuming needs, atomically."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        tensors |= {f"optimizer.{n}.{k}": v for n, state in self._states().items() for k, v in state.items()}
        metadata = {"step": str(self.step), "plan": json.dumps(asdict(self.plan))}
        metadata["shape"] = json.dumps(asdict(self.shape))
        fresh = path.with_suffix(".fresh")
        # Cloned, because embedding and output are one tensor, which safetensors would refuse.
        save_file({k: v.detach().cpu().clone() for k, v in tensors.items()}, str(fresh), metadata=metadata)
        os.replace(fresh, path)

    def load(self, path: Path, weights_only: bool = False) -> None:
        """Continue from a file written by `save`; the plan stays the one given to the constructor.

        With `weights_only` a new run begins from the averaged weights of that file. Raises `ValueError` where the file
        is for a network of another shape.
        """
        with safe_open(str(path), framework="pt", device=self.device) as handle:
            metadata = handle.metadata() or {}
            if metadata.get("shape") != json.dumps(asdict(self.shape)):
                raise ValueError(f"{path} is for another network than this run's; give a fresh --out folder")
            tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 (not a mapping)
        self.average = {k[8:]: v for k, v in tensors.items() if k.startswith("average.")}
        if weights_only:
            self.model.load_state_dict(self.average)
            return
        self.step = int(metadata["step"])
        self.model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        for optimizer in self.optimizers:
            owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
            for name, parameter in self.model.named_parameters():
                head = f"optimizer.{name}."
                if id(parameter) in owned:
                    state = {k[len(head) :]: v for k, v in tensors.items() if k.startswith(head)}
                    optimizer.state[parameter] = state


def run(
    trainer: Trainer,
    objective: Objective,
    out: Path,
    save: Callable[[Trainer], None],
    save_every: int,
    score_every: int,
    score: Callable[[LlamaForCausalLM], dict[str, float]],
) -> None:
    """Train to the end of the plan, logging on the way, and calling `save` and `score` now and then and at the end."""
    started, first = time.monotonic(), trainer.step
    sums: dict[str, list[float]] = {}
    with (out / "log.jsonl").open("a", encoding="utf-8") as log:

        def note(record: dict[str, float]) -> None:
            log.write(json.dumps(record) + "\n")
            log.flush()
            print("  ".join(f"{k} {v:.4g}" for k, v in record.items()), flush=True)

        while trainer.step < trainer.plan.steps:
            trainer.advance(objective)
            for name, value in objective.report.items():
                sums.setdefault(name, []).append(value)
            if trainer.step % 25 == 0:
                seconds = (time.monotonic() - started) / (trainer.step - first)
                means = {name: sum(values) / len(values) for name, values in sums.items()}
                note({"step": trainer.step, **means, "seconds_per_step": seconds})
                sums.clear()
            last = trainer.step == trainer.plan.steps
            if trainer.step % save_every == 0 or last:
                trainer.save(out / "checkpoint.safetensors")
                save(trainer)
            if trainer.step % score_every == 0 or last:
                note({"step": trainer.step, **score(trainer.averaged())})


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of the trainer."""
    parser = argparse.ArgumentParser(prog="python -m zoo.code.train", description="Train the embedded code models.")
    default, recipe = TrainPlan(), Recipe()
    parser.add_argument("--model", choices=["target", "draft"], required=True)
    parser.add_argument("--out", type=Path, required=True, help="run folder; resumes where it holds a checkpoint")
    parser.add_argument("--teacher", type=Path, help="folder of the target that the drafter imitates")
    parser.add_argument("--begin", type=Path, help="checkpoint whose averaged weights a fresh run begins from")
    parser.add_argument("--steps", type=int, default=default.steps)
    parser.add_argument("--decay", type=int, default=default.decay)
    parser.add_argument("--rate", type=float, default=default.rate)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--batch", type=int, default=8, help="windows of a step")
    parser.add_argument("--context", type=int, default=512, help="tokens of a window")
    parser.add_argument("--temperature", type=float, default=recipe.temperature, help="at which drafts will be judged")
    parser.add_argument("--kl", type=float, default=recipe.kl, help="weight of KL beside the total variation")
    parser.add_argument("--share", type=float, default=recipe.share, help="share of windows that the teacher writes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-bf16", action="store_true")
    parser.add_argument("--compile", action="store_true", help="a quarter faster on a CPU with a C++ compiler")
    parser.add_argument("--save-every", type=int, default=200)
    parser.add_argument("--score-every", type=int, default=500)
    parser.add_argument("--publish", type=Path, help="write the model's folder here too whenever the run is saved")
    args = parser.parse_args(argv)
    if args.teacher is not None and args.model == "target":
        parser.error("--teacher goes with --model draft")
    torch.set_num_threads(args.threads)
    plan = TrainPlan(steps=args.steps, decay=args.decay, rate=args.rate, seed=args.seed)
    trainer = Trainer(plan, TARGET if args.model == "target" else DRAFT, args.device, args.compile)
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint = args.out / "checkpoint.safetensors"
    if checkpoint.is_file():
        trainer.load(checkpoint)
    elif args.begin is not None:
        trainer.load(args.begin, weights_only=True)
    corpus = stdlib()
    if args.teacher is not None:
        tokenizer = load_tokenizer(args.teacher)
    else:
        tokenizer = train_tokenizer(document.text for document in corpus.train)
    stream = token_stream(tokenizer, (document.text for document in corpus.train))
    windows = Windows(stream, args.batch, args.context, args.seed)
    objective: Objective
    if args.teacher is not None:
        chosen = Recipe(temperature=args.temperature, kl=args.kl, share=args.share)
        reader = fast(load(args.teacher, args.device), args.compile)
        teacher = Teacher(load(args.teacher, args.device), windows, chosen)
        objective = Imitation(teacher, reader, not args.no_bf16, args.compile)
    else:
        objective = Language(windows, not args.no_bf16, args.compile)
    metadata = {"corpus_sha256": fingerprint(corpus.train), "python": corpus.python}
    held_out = token_stream(tokenizer, (document.text for document in corpus.held_out[:8]))
    size = sum(len(document.text.encode()) + 1 for document in corpus.held_out[:8])

    def save(trainer: Trainer) -> None:
        facts = {**metadata, "step": str(trainer.step), "plan": json.dumps(asdict(trainer.plan))}
        for folder in (args.out / "model", args.publish):
            if folder is not None:
                publish(trainer.shape, trainer.average, tokenizer, folder, facts)

    def score(model: LlamaForCausalLM) -> dict[str, float]:
        return {"bits_per_byte": bits(model, held_out) / size}

    run(trainer, objective, args.out, save, args.save_every, args.score_every, score)


if __name__ == "__main__":
    main()
