"""Whether sessions can be parked and taken up as a generation asks for it, before anything is started."""

from __future__ import annotations

from paceline.launch.errors import ArgumentError
from paceline.launch.folders import make_writable
from paceline.pipeline.topology import StageKind
from paceline.runtime.language.models import Models
from paceline.runtime.language.parked import kv_file, parked_folders
from paceline.runtime.language.spec import GenerateSpec, Resumed
from paceline.stages.lm.folder import weights_identity
from paceline.stages.lm.layer_run import even_runs
from paceline.stages.lm.rank_tiers import RankTiers
from paceline.tiers.errors import StoreError
from paceline.tiers.fingerprint import Fingerprint
from paceline.tiers.parking import parked_fingerprint

__all__ = ["check_parked_tokens", "check_parking"]


def check_parking(spec: GenerateSpec, models: Models) -> None:
    """Check `--park` and `--resume`. Raises `ArgumentError`.

    KV that is missing or damaged is no reason to refuse: it is computed again, or its session fails by name.
    """
    if spec.park is None and not spec.resumed:
        return
    if models.plan.state_bytes:
        raise ArgumentError(
            f"{models.target} has layers with a state of constant size, which is not parked; run it without --park and "
            "--resume"
        )
    verify = spec.topology.stages[spec.topology.stage_of(StageKind.verify)]
    tiers = spec.topology.tiers.get(verify.group)
    if tiers is None:
        raise ArgumentError(
            f"sessions are parked as blocks of KV, and the group {verify.group} keeps none; give it tiers, "
            f"as --set tiers.{verify.group}.hbm=64MiB"
        )
    _check_folder(spec)
    if not spec.resumed:
        return
    ranks = 1 if spec.serial else spec.topology.groups[verify.group].ranks
    dtype = models.plan.folder.dtype_on(spec.topology.groups[verify.group].device)
    identity = weights_identity(models.target)
    wanted = [
        RankTiers(tiers, identity, rank, ranks).fingerprint(range(*layers), models.plan.kv_shape, dtype)
        for rank, layers in enumerate(even_runs(models.layers, ranks))
    ]
    for prompt, resumed in zip(spec.prompts, spec.resumed, strict=True):
        tokens = resumed.session.tokens
        if tokens[-1] in models.eos and not prompt:
            raise ArgumentError(
                f"session {resumed.session.number} in {resumed.folder} came to the end of its text; give it a "
                "--prompt to go on from ('' for the others), or --ignore-eos"
            )
        _check_kv(resumed, wanted)


def check_parked_tokens(spec: GenerateSpec, models: Models) -> None:
    """Raise `ArgumentError` where a parked session holds a token that the target does not have."""
    for resumed in spec.resumed:
        largest = max(resumed.session.tokens)
        if largest >= models.plan.rows:
            raise ArgumentError(f"{resumed.folder}: token {largest} is not one of this model; take its own")


def _check_kv(resumed: Resumed, wanted: list[Fingerprint]) -> None:
    if resumed.session.ranks != len(wanted):
        raise ArgumentError(
            f"{resumed.folder} was parked by a verifier of {resumed.session.ranks} rank(s), not {len(wanted)}; take up "
            "with as many as it was parked with"
        )
    for rank, fingerprint in enumerate(wanted):
        path = kv_file(resumed.folder, rank, resumed.session.tokens[:-1])
        try:
            found = parked_fingerprint(path)
        except StoreError:
            continue
        if found != fingerprint:
            raise ArgumentError(
                f"{path} holds KV of {fingerprint.differences(found)}; take up with the model "
                "and the block size that it was parked with"
            )


def _check_folder(spec: GenerateSpec) -> None:
    park = spec.park
    if park is None:
        return
    make_writable(f"--park {park}", park)
    lost = set(parked_folders(park)) - {resumed.folder for resumed in spec.resumed}
    if lost:
        raise ArgumentError(
            f"--park {park}: holds {min(lost).name} already, and would lose it; take it up with --resume, remove it, "
            "or name another folder"
        )
