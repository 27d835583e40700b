"""The serial reference: plain decoding in one process, one session after the other. No windows, no verdicts."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch

from paceline.kernels.gumbel import DrawKey, GumbelRows, uniforms
from paceline.kernels.philox import Purpose
from paceline.pipeline.speculation.window import Coupling, FinishReason, ending
from paceline.pipeline.topology import Topology
from paceline.runtime.lanes import own_device
from paceline.runtime.language.active_session import TextLog
from paceline.runtime.language.models import Models
from paceline.runtime.language.parked import SessionStore
from paceline.runtime.result import LanguageResult, RankReport, TextResult, peak_rss_bytes
from paceline.runtime.spec import GenerateSpec
from paceline.runtime.timeline import now
from paceline.stages.couplings import sample
from paceline.stages.finite import NotFinite, can_choose
from paceline.stages.lm.decoder import Decoder
from paceline.stages.lm.folder import weights_identity
from paceline.stages.lm.rank_tiers import RankTiers
from paceline.stages.lm.sequence_kv import SequenceError
from paceline.stages.lm.text_stream import TextStream
from paceline.stages.sampling import warp
from paceline.tiers.manager import TierManager

__all__ = ["generate_serial"]


def generate_serial(
    spec: GenerateSpec,
    models: Models,
    log: Path | None,
    tiers: RankTiers | None = None,
    observe: Callable[[TierManager], None] | None = None,
) -> LanguageResult:
    """Generate every session by itself. `tiers` takes the place of what the topology says; `observe` is given their
    manager before anything is computed."""
    verify = next(stage for stage in spec.topology.stages.values() if stage.kind == "verify")
    group = spec.topology.groups[verify.group]
    torch.set_num_threads(group.threads)
    rows = spec.topology.speculation.rows if spec.topology.deterministic else None
    tiers = tiers or _serial_tiers(spec.topology, models)
    decoder = Decoder.load(models.target, own_device(group.device), rows=rows, tiers=tiers, rollback=0)
    if observe is not None and decoder.tiers is not None:
        observe(decoder.tiers.manager)
    text_log = TextLog(log)
    started = now()
    failures: list[str] = []
    parked: list[int] = []
    sessions = [
        _session(spec, models, decoder, number, text_log, started, failures, parked)
        for number in range(len(spec.prompts))
    ]
    wall_s = now() - started
    text_log.close()
    statistics = history = None
    if decoder.tiers is not None:
        statistics, history = decoder.tiers.statistics(), decoder.tiers.history()
        decoder.tiers.close()
    tokens = sum(len(text.token_ids) for text in sessions)
    report = RankReport(
        rank=0, group=verify.group, host=os.uname().nodename, pid=os.getpid(), device="cpu", threads=group.threads,
        stages=[], busy_s=wall_s, wall_s=wall_s, stage_ms={}, peak_rss_bytes=peak_rss_bytes(), sessions=[], edges=[],
        kv_sha256={}, tiers=statistics, role="serial", passes=tokens, tokens=tokens,
        pass_ms=1e3 * wall_s / max(1, tokens), history=history, failures=failures,
    )  # fmt: skip
    return LanguageResult(
        sessions, wall_s, [report], settings={"window": 0, "depth": 1, "hedge": 0}, predicted_speedup=None,
        measured_speedup=None, warnings=failures, parked=parked,
    )  # fmt: skip


def _session(
    spec: GenerateSpec,
    models: Models,
    decoder: Decoder,
    number: int,
    log: TextLog,
    started: float,
    failures: list[str],
    parked: list[int],
) -> TextResult:
    tokenizer = models.tokenizer()
    tokens = spec.begin(number, tokenizer)
    prompt, seed = len(tokens), spec.session_seed(number)
    options = spec.options(number)
    coupling = options.sampling.effective_coupling
    noise = GumbelRows(models.vocab) if coupling is Coupling.gumbel else None
    stream = TextStream(tokenizer, options.stop, tokens, spec.cut(number))
    pieces: list[str] = []
    sequence = decoder.open()
    began, first = now(), 0.0
    held = spec.held(number)
    new = tokens[held:]
    reason: FinishReason | None = None
    keeper = SessionStore(spec, 0, "the serial worker", failures)
    if held and not keeper.take_up(decoder, sequence, number, tokens[:held]):
        reason = FinishReason.failed
    while reason is None:
        try:
            (logits,) = decoder.forward([(sequence, torch.tensor(new, dtype=torch.int64))], keep=[1])
        except SequenceError as error:
            failures.append(f"session {number} failed: {error}")
            reason = FinishReason.failed
            break
        if not can_choose(logits):
            failures.append(f"session {number} failed: {NotFinite('the logits hold')}")
            reason = FinishReason.failed
            break
        row = warp(logits, options.sampling, [tokens])
        if coupling is Coupling.rejection:
            key = DrawKey(seed, len(tokens))
            token = int(sample(row.to(torch.float64).exp(), uniforms([key], Purpose.plain))[0])
        else:
            scores = row if noise is None else row + noise.rows([seed], [len(tokens)]).to(row.device)
            token = int(scores.argmax())
        first = first or now()
        new = [token]
        tokens = [*tokens, token]
        text = stream.push(token)
        pieces.append(text)
        log.write(number, text, "plain")
        reason = ending(token, len(tokens), prompt + options.max_tokens, models.eos, stream.stop is not None)
    rest = stream.finish(cut=spec.park is not None and reason is FinishReason.length)
    if reason is FinishReason.length and stream.stop is not None:
        reason = FinishReason.stop
    pieces.append(rest)
    log.write(number, rest, "plain")
    if spec.park is not None and reason is not FinishReason.failed:
        kept = keeper.record(number, tokens, seed, reason.value, 1)
        if keeper.park(decoder, sequence, number, tokens[:-1]) and keeper.complete(kept):
            parked.append(kept.number)
    decoder.close(sequence)
    return TextResult(
        id=number, text="".join(pieces), token_ids=tokens[prompt:], finish_reason=reason.value, prompt_tokens=prompt,
        started_s=began - started, first_token_s=(first or now()) - started, finished_s=now() - started,
    )  # fmt: skip


def _serial_tiers(topology: Topology, models: Models) -> RankTiers | None:
    """The memory tiers of the serial reference, which holds all layers with the budgets of one rank of the
    verifier's group."""
    verify = next(stage for stage in topology.stages.values() if stage.kind == "verify")
    spec = topology.tiers.get(verify.group)
    return None if spec is None else RankTiers(spec, weights_identity(models.target))
