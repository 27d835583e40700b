"""Whether a generation can run as it was asked for, before anything is started."""

from __future__ import annotations

from paceline.launch.errors import ArgumentError
from paceline.launch.files import check_curve
from paceline.pipeline.topology import StageKind
from paceline.runtime.language.models import Models
from paceline.runtime.language.spec import GenerateSpec
from paceline.stages.lm.folder import ModelFolderError

__all__ = ["check_generation"]


def check_generation(spec: GenerateSpec) -> None:
    """Check the models, the lengths of the prompts, memory tiers, parking and keys. Raises `ArgumentError`."""
    topology = spec.topology
    try:
        models = Models.of(spec)
        tokenizer = models.tokenizer()
    except (ModelFolderError, ValueError) as error:
        raise ArgumentError(str(error)) from error
    # Imported here, as they bring torch: what is wrong with a folder should not wait for it.
    from paceline.launch.language.parking import check_parking
    from paceline.launch.language.tiers import check_tiers_hold
    from paceline.stages.lm.layer_run import even_runs

    lengths = []
    for number in range(len(spec.prompts)):
        try:
            lengths.append(len(spec.begin(number, tokenizer)))
        except ValueError as error:
            raise ArgumentError(f"prompt {number}: {error}") from error
    verify = next(stage for stage in topology.stages.values() if stage.kind is StageKind.verify)
    try:
        even_runs(models.layers, topology.groups[verify.group].ranks)
    except ValueError as error:
        raise ArgumentError(f"groups.{verify.group}.ranks: {error}") from error
    limit = models.max_positions
    for number, length in enumerate(lengths):
        most = spec.options(number).max_tokens
        if limit is not None and length + most > limit:
            raise ArgumentError(
                f"prompt {number} has {length} tokens, with --max-tokens {most} that makes {length + most}, and the "
                f"models take {limit}; ask for fewer or shorten it"
            )
    check_tiers_hold(spec, models, lengths)
    check_parking(spec, models)
    if not spec.serial:
        check_curve(topology)
