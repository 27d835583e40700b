"""Records what attention looks at while a language model decodes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from paceline.launch.errors import ArgumentError
from paceline.launch.workload import Recording
from paceline.pipeline.stage import StageKind
from paceline.pipeline.tiers import TierSpec
from paceline.pipeline.topology import LanguageTopology
from paceline.runtime.language.models import Models
from paceline.runtime.language.serial import generate_serial
from paceline.runtime.spec import GenerateSpec
from paceline.stages.lm.rank_tiers import RankTiers
from paceline.stages.sampling_params import SamplingParams
from paceline.tiers.attention import Query
from paceline.tiers.block_stats import Floats
from paceline.tiers.manager import TierManager
from paceline.tiers.pool import Blocks
from paceline.tiers.traces.format import TraceHeader, TraceWriter

__all__ = ["record_generation"]

_SPARE = 2
"""Blocks of each layer beyond the longest session, for padding."""


class _Recorder:
    """Writes every measured call of a manager to a trace."""

    def __init__(self, writer: TraceWriter) -> None:
        self._writer = writer
        self._manager: TierManager | None = None
        self.steps = self.blocks = 0

    def attach(self, manager: TierManager) -> None:
        """Listen to a manager."""
        self._manager = manager
        manager.on_masses, manager.on_release = self.masses, self.released

    def masses(self, query: Query, masses: Floats) -> None:
        """One call of attention."""
        if self._manager is None:
            return
        now = self._manager.now
        rows = query.q_HMD.shape[1] if query.new is None else query.new.stop
        self._writer.record(
            now, query.session, query.layer, query.start + rows, query.blocks, query.starts,
            np.clip(masses, 0.0, 1.0),
        )  # fmt: skip
        self.steps = now + 1
        self.blocks = max(self.blocks, len(self._manager.pool))

    def released(self, blocks: Blocks) -> None:
        """Blocks that nobody holds any more."""
        if self._manager is not None:
            self._writer.drop(self._manager.now, blocks)


def record_generation(
    topology: LanguageTopology,
    prompts: Sequence[str],
    out: Path,
    max_tokens: int,
    seed: int,
    temperature: float,
    ignore_eos: bool = False,
) -> Recording:
    """Decode prompts one after another, as the serial reference does, and write the trace `out`.

    Raises `ModelFolderError`, and `ArgumentError` for prompts that are too long.
    """
    params = SamplingParams(temperature, seed=seed, coupling=topology.speculation.coupling)
    spec = GenerateSpec(topology, tuple(prompts), max_tokens, seed, params, (), ignore_eos, serial=True)
    models = Models.of(spec)
    tokenizer = models.tokenizer()
    longest = max(len(tokenizer.encode(text)) for text in prompts) + max_tokens
    if models.max_positions is not None and longest > models.max_positions:
        raise ArgumentError(
            f"the longest prompt and --max-tokens make {longest} tokens, and the model takes {models.max_positions}; "
            "ask for fewer or shorten it"
        )
    verify = topology.stages[topology.stage_of(StageKind.verify)]
    named = topology.tiers.get(verify.group)
    shape = TierSpec(hbm=1, block_size=16 if named is None else named.block_size)
    layout = RankTiers(shape, "").layout(models.plan.kv_layers(0, models.layers), models.plan.kv_shape, torch.float32)
    room = (layout.blocks(longest + topology.speculation.rows) + _SPARE) * layout.layers
    # Everything fits, and every step is measured.
    tiers = TierSpec(hbm=room * layout.block_nbytes, block_size=shape.block_size, refresh=1)
    header = TraceHeader(
        f"{topology.name}/{verify.group}", layout.block_size, layout.block_nbytes, f"paceline trace record, seed {seed}"
    )
    with TraceWriter(out, header) as writer:
        recorder = _Recorder(writer)
        generate_serial(spec, models, None, RankTiers(tiers, "trace"), recorder.attach)
    return Recording(recorder.steps, recorder.blocks, out.stat().st_size)
