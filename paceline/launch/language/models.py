"""Whether the models can do what a generation asks of them, before anything is started."""

from __future__ import annotations

from collections.abc import Sequence

from paceline.launch.errors import ArgumentError
from paceline.pipeline.topology import StageKind
from paceline.runtime.language.models import Models
from paceline.runtime.spec import GenerateSpec
from paceline.stages.lm.layer_run import even_runs

__all__ = ["check_models"]


def check_models(spec: GenerateSpec, models: Models, prompts: Sequence[Sequence[int]]) -> None:
    """Check the number of ranks, the tokens of the prompts and their lengths, and what `deterministic` asks for. Raises
    `ArgumentError`."""
    topology = spec.topology
    verify = topology.stages[topology.stage_of(StageKind.verify)]
    try:
        even_runs(models.layers, topology.groups[verify.group].ranks)
    except ValueError as error:
        raise ArgumentError(f"groups.{verify.group}.ranks: {error}") from error
    rows = topology.speculation.rows
    if topology.deterministic and rows > 1 and models.plan.mixes_rows:
        raise ArgumentError(
            f"deterministic: {models.target} has experts, which multiply as many rows at once as chose them, so "
            f"results depend on what else is in a pass of {rows} rows; add --set speculation.rows=1, or leave "
            "deterministic out"
        )
    limit = models.max_positions
    for number, tokens in enumerate(prompts):
        most = spec.options(number).max_tokens
        if max(tokens) >= models.plan.rows:
            raise ArgumentError(
                f"prompt {number} has the token {max(tokens)}, and {models.target} has {models.plan.rows} tokens; put "
                "the tokenizer of this model into its folder"
            )
        if limit is not None and len(tokens) + most > limit:
            raise ArgumentError(
                f"prompt {number} has {len(tokens)} tokens, with --max-tokens {most} that makes "
                f"{len(tokens) + most}, and {models.target} takes {limit}; ask for fewer or shorten it"
            )
