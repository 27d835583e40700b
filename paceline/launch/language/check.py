"""Whether a generation can run as it was asked for, before anything is started."""

from __future__ import annotations

from paceline.launch.errors import ArgumentError
from paceline.launch.files import check_drafter
from paceline.runtime.language.models import Models
from paceline.runtime.spec import GenerateSpec
from paceline.stages.lm.folder import ModelFolderError

__all__ = ["check_generation", "find_models"]


def find_models(spec: GenerateSpec) -> Models:
    """What is known of the models of a generation, after a look at its drafter. Raises `ArgumentError`."""
    check_drafter(spec.topology)
    try:
        return Models.of(spec)
    except (ModelFolderError, ValueError) as error:
        raise ArgumentError(f"model: {error}") from error


def check_generation(spec: GenerateSpec, models: Models) -> None:
    """Check the models, the lengths of the prompts, memory tiers and parking. Raises `ArgumentError`."""
    try:
        tokenizer = models.tokenizer()
    except (ModelFolderError, ValueError) as error:
        raise ArgumentError(str(error)) from error
    # Imported here, as they bring torch: what is wrong with a folder should not wait for it.
    from paceline.launch.language.models import check_models
    from paceline.launch.language.parking import check_parked_tokens, check_parking
    from paceline.launch.language.tiers import check_tiers_hold

    begun = []
    for number in range(len(spec.prompts)):
        try:
            begun.append(spec.begin(number, tokenizer))
        except ValueError as error:
            raise ArgumentError(f"prompt {number}: {error}") from error
    check_parked_tokens(spec, models)
    check_models(spec, models, begun)
    check_tiers_hold(spec, models, [len(tokens) for tokens in begun])
    check_parking(spec, models)
