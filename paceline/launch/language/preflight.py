"""Whether models, parked sessions and memory tiers hold what a generation asks of them, before anything is started."""

from __future__ import annotations

from collections.abc import Sequence

from paceline.launch.errors import ArgumentError
from paceline.launch.files import make_writable
from paceline.pipeline.stage import StageKind
from paceline.pipeline.strict_model import format_size
from paceline.runtime.language.messages import first_settings
from paceline.runtime.language.models import Models
from paceline.runtime.language.parked import kv_file, parked_folders
from paceline.runtime.spec import GenerateSpec, Resumed
from paceline.stages.lm.folder import weights_identity
from paceline.stages.lm.layer_run import even_runs
from paceline.stages.lm.rank_tiers import RankTiers
from paceline.stages.tier_spec import budget_of, nvme_folder
from paceline.tiers.errors import StoreError, TierError
from paceline.tiers.packed_memory import stored_nbytes
from paceline.tiers.parking import parked_fingerprint
from paceline.tiers.store_file import Fingerprint

__all__ = ["check_models", "check_parked_tokens", "check_parking", "check_tiers_hold"]


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


_AHEAD = 64
"""Positions beyond the text that windows in flight may write."""


def check_tiers_hold(spec: GenerateSpec, models: Models, prompts: Sequence[int]) -> None:
    """Check every group's budgets: room for two blocks of each layer in hbm, and in all tiers for the sessions that run
    at a time; `prompts` are their lengths in tokens. Raises `ArgumentError`."""
    topology = spec.topology
    for stage in topology.stages.values():
        tiers = topology.tiers.get(stage.group)
        drafts = stage.kind is StageKind.draft
        plan = models.draft_plan if drafts else models.plan
        if tiers is None or plan is None or (drafts and spec.plain):
            continue
        key = f"tiers.{stage.group}"
        if tiers.nvme is not None:
            make_writable(f"{key}.nvme.path: {tiers.nvme.path}", nvme_folder(tiers.nvme))
        ranks = 1 if spec.serial else topology.groups[stage.group].ranks
        held = [plan.kv_layers(first, last) for first, last in even_runs(plan.layers, ranks)]
        dtype = plan.folder.dtype_on(topology.groups[stage.group].device)
        try:
            shape = plan.kv_shape
            if not min(held):
                raise ValueError(
                    f"rank {held.index(0)} of the group holds no attention layer, and so no KV; lower "
                    f"groups.{stage.group}.ranks, or run without tiers"
                )
            layout = RankTiers(tiers, "").layout(max(held), shape, dtype)
            stored = None if tiers.bits is None else stored_nbytes(layout, tiers.bits)
            slots = budget_of(tiers).slots(layout, stored)
        except (TierError, ValueError) as error:
            raise ArgumentError(f"{key}: {error}") from error
        width = first_settings(topology.speculation).hedge if drafts else 0
        at_once = 1 if spec.serial else topology.speculation.sessions
        most = (length + spec.options(session).max_tokens + _AHEAD for session, length in enumerate(prompts))
        lengths = sorted(most, reverse=True)[:at_once]
        # Hedges share all but their last blocks.
        blocks = sum(layout.blocks(length) + width * (1 + layout.blocks(_AHEAD)) for length in lengths) * layout.layers
        if blocks > slots.total:
            size = layout.block_nbytes
            raise ArgumentError(
                f"{key}: {len(lengths)} session(s) at a time of up to {lengths[0]} tokens take {blocks} blocks "
                f"({format_size(blocks * size)}); the tiers hold {slots.total} ({format_size(slots.total * size)}); "
                "raise dram or nvme.size, or lower speculation.sessions or --max-tokens"
            )
