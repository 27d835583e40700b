"""One rank of a generation, from its models to its result."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

from paceline.pipeline.placement import Placement
from paceline.runtime.device import own_device
from paceline.runtime.endpoint import Endpoint
from paceline.runtime.errors import PeerLost
from paceline.runtime.language.drafter import DraftWorker
from paceline.runtime.language.home import HomeWorker
from paceline.runtime.language.models import Models
from paceline.runtime.language.result import LanguageResult
from paceline.runtime.language.roles import Roles
from paceline.runtime.language.spec import GenerateSpec
from paceline.runtime.language.tiers import tiers_of
from paceline.runtime.language.verifier import VerifyWorker
from paceline.runtime.language.worker import LanguageWorker, Progress
from paceline.runtime.rendezvous import Rendezvous
from paceline.stages.lm.decoder import Decoder
from paceline.stages.lm.draft_stage import DraftStage
from paceline.stages.lm.layer_run import even_runs
from paceline.stages.lm.ngram import NgramStage
from paceline.stages.lm.verify_stage import VerifyStage
from paceline.stages.sampling_params import SamplingParams

__all__ = ["generate_rank", "make_worker"]

_SWITCH_INTERVAL_S = 0.0005


def generate_rank(
    spec: GenerateSpec,
    models: Models,
    rank: int,
    world_size: int,
    run_dir: Path,
    progress: Progress,
    log: Path | None,
) -> LanguageResult | None:
    """Run one rank; the result on the first verifier, None elsewhere.

    Raises `ModelFolderError` for models that can't be used, `TransportError` and `RendezvousError` as `run_rank` does.
    """
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    roles = Roles.of(spec.topology)
    rendezvous = Rendezvous.open(rank, world_size, run_dir, spec.topology.network)
    with Endpoint(rendezvous, spec.topology, roles.routes(), expendable=[roles.drafter]) as endpoint:
        worker = make_worker(spec, rank, endpoint, progress, models, log)
        try:
            worker.work()
            if isinstance(worker, HomeWorker):
                return worker.result()
            # Told to end, nobody is to blame if the first verifier did not wait for the report.
            with suppress(PeerLost):
                worker.send_report()
            return None
        finally:
            worker.close()


def make_worker(
    spec: GenerateSpec, rank: int, endpoint: Endpoint, progress: Progress, models: Models, log: Path | None
) -> LanguageWorker:
    """The worker of a rank with its models loaded; `log` is where the first verifier writes what is committed."""
    topology, roles = spec.topology, Roles.of(spec.topology)
    device = own_device(topology.groups[Placement(topology).group_of_rank(rank)].device)

    def params(session: int) -> SamplingParams:
        return spec.options(session).sampling

    if rank == roles.drafter:
        stage: DraftStage | NgramStage = NgramStage()
        tiers = None
        if models.draft is not None:
            drafting = Decoder.load(models.draft, device, tiers=tiers_of(topology, rank, models))
            stage, tiers = DraftStage(drafting, params, models.vocab), drafting.tiers
        drafter = DraftWorker(spec, rank, endpoint, progress, stage, models.eos, models.draft_positions)
        drafter.tiers = tiers
        return drafter
    runs = even_runs(models.layers, len(roles.verifiers))
    rows = topology.speculation.rows if topology.deterministic else None
    held = runs[roles.verifiers.index(rank)]
    decoder = Decoder.load(models.target, device, layers=held, rows=rows, tiers=tiers_of(topology, rank, models))
    verify = VerifyStage(decoder, params, models.vocab)
    if rank != roles.first:
        worker = VerifyWorker(spec, rank, endpoint, progress, verify, models.eos)
    else:
        tokenizer = models.tokenizer()
        prompts = [spec.begin(session, tokenizer) for session in range(len(spec.prompts))]
        worker = HomeWorker(
            spec, rank, endpoint, progress, verify, models.eos, prompts, tokenizer, log, models.draft_positions
        )
    worker.tiers = decoder.tiers
    return worker
