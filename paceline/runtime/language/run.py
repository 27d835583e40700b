"""One rank of a generation, from its models to its result."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch

from paceline.pipeline.placement import Placement
from paceline.pipeline.stage import StageKind
from paceline.pipeline.topology import Topology
from paceline.runtime.endpoint import Endpoint
from paceline.runtime.lanes import own_device
from paceline.runtime.language.actor import LanguageActor, Progress
from paceline.runtime.language.drafter import DrafterActor
from paceline.runtime.language.leader import LeaderActor
from paceline.runtime.language.models import Models
from paceline.runtime.language.roles import Roles
from paceline.runtime.language.verifier import VerifierActor
from paceline.runtime.rendezvous import Rendezvous
from paceline.runtime.result import LanguageResult
from paceline.runtime.spec import GenerateSpec
from paceline.runtime.worker import SWITCH_INTERVAL_S, Worker
from paceline.stages.lm.decoder import Decoder
from paceline.stages.lm.drafter import DrafterPlace, DraftStage, make_drafter
from paceline.stages.lm.folder import weights_identity
from paceline.stages.lm.layer_run import even_runs
from paceline.stages.lm.ngram import NgramStage
from paceline.stages.lm.rank_tiers import RankTiers
from paceline.stages.lm.verify_stage import VerifyStage
from paceline.stages.sampling_params import SamplingParams

__all__ = ["generate_rank", "make_actor", "make_worker"]

_REPORTS_S = 2.0
"""How long ranks may take to report at the end; one that hangs is left out."""


def generate_rank(
    spec: GenerateSpec,
    models: Models,
    rank: int,
    world_size: int,
    run_dir: Path,
    progress: Progress,
    log: Path | None,
) -> LanguageResult | None:
    """Run one rank; the result on the leader, None elsewhere.

    Raises `ModelFolderError` for models that can't be used, `TransportError` and `RendezvousError` as `run_rank` does.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    roles = Roles.of(spec.topology)
    rendezvous = Rendezvous.open(rank, world_size, run_dir, spec.topology.network)
    with Endpoint(rendezvous, spec.topology, roles.routes(), expendable=[roles.drafter]) as endpoint:
        worker, actor = make_worker(spec, rank, endpoint, run_dir, progress, models, log)
        reports = worker.run()
        return actor.result(reports) if reports is not None and isinstance(actor, LeaderActor) else None


def make_worker(
    spec: GenerateSpec,
    rank: int,
    endpoint: Endpoint,
    run_dir: Path,
    progress: Progress,
    models: Models,
    log: Path | None,
) -> tuple[Worker, LanguageActor]:
    """The worker of a rank and its actor, with models loaded; `log` is where the leader writes what is committed."""
    topology, roles = spec.topology, Roles.of(spec.topology)
    group = Placement(topology).group_of_rank(rank)
    torch.set_num_threads(topology.groups[group].threads)
    device = own_device(topology.groups[group].device)
    kind = StageKind.draft if rank == roles.drafter else StageKind.verify
    name = topology.stage_of(kind)
    worker = Worker(
        topology, endpoint, run_dir, group, device, [name], roles.first, progress,
        events=spec.out is not None, reports_s=_REPORTS_S,
    )  # fmt: skip
    actor = make_actor(spec, rank, endpoint, worker.notify, name, device, models, log)
    worker.add(actor, [name])
    return worker, actor


def make_actor(
    spec: GenerateSpec,
    rank: int,
    endpoint: Endpoint,
    notify: Callable[[], None],
    name: str,
    device: str,
    models: Models,
    log: Path | None,
) -> LanguageActor:
    """The actor of a rank, whose stage has a name, with its model loaded."""
    topology, roles = spec.topology, Roles.of(spec.topology)
    rollback = topology.speculation.rollback

    def params(session: int) -> SamplingParams:
        return spec.options(session).sampling

    if rank == roles.drafter:
        drafter = None if spec.plain else make_drafter(topology.speculation)
        drafting = None
        if models.draft is not None:
            drafting = Decoder.load(models.draft, device, tiers=_tiers_of(topology, rank, models), rollback=rollback)
        # Without a drafter no session is opened on this rank.
        place = DrafterPlace(params, models.vocab, drafting)
        stage: DraftStage = NgramStage() if drafter is None else drafter.load(place)
        drafts = DrafterActor(spec, rank, endpoint, notify, name, stage, models.eos, models.draft_positions)
        drafts.tiers = None if drafting is None else drafting.tiers
        return drafts
    runs = even_runs(models.layers, len(roles.verifiers))
    rows = topology.speculation.rows if topology.deterministic else None
    held = runs[roles.verifiers.index(rank)]
    tiers = _tiers_of(topology, rank, models)
    decoder = Decoder.load(models.target, device, layers=held, rows=rows, tiers=tiers, rollback=rollback)
    verify = VerifyStage(decoder, params, models.vocab)
    if rank != roles.first:
        actor = VerifierActor(spec, rank, endpoint, notify, name, verify, models.eos)
    else:
        tokenizer = models.tokenizer()
        prompts = [spec.begin(session, tokenizer) for session in range(len(spec.prompts))]
        actor = LeaderActor(
            spec, rank, endpoint, notify, name, verify, models.eos, prompts, tokenizer, log, models.draft_positions
        )
    actor.tiers = decoder.tiers
    return actor


def _tiers_of(topology: Topology, rank: int, models: Models) -> RankTiers | None:
    """The memory tiers of a rank; None where its group has none, or where it runs no model."""
    spec = topology.tiers.get(Placement(topology).group_of_rank(rank))
    if spec is None:
        return None
    roles = Roles.of(topology)
    if rank == roles.drafter:
        return None if models.draft is None else RankTiers(spec, weights_identity(models.draft))
    identity = weights_identity(models.target)
    return RankTiers(spec, identity, roles.verifiers.index(rank), len(roles.verifiers))
