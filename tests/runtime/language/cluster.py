"""All ranks of a generation as threads of one process, with real endpoints: processes would all import Transformers."""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from paceline.launch.spec_file import read_spec, write_spec
from paceline.pipeline.load import load_topology
from paceline.pipeline.speculation.window import Coupling
from paceline.pipeline.topology import Topology
from paceline.runtime.endpoint import Endpoint
from paceline.runtime.language.actor import LanguageActor
from paceline.runtime.language.leader import LeaderActor
from paceline.runtime.language.models import Models
from paceline.runtime.language.roles import Roles
from paceline.runtime.language.run import make_worker
from paceline.runtime.language.serial import generate_serial
from paceline.runtime.rendezvous import Rendezvous
from paceline.runtime.result import LanguageResult
from paceline.runtime.spec import GenerateSpec
from paceline.stages.sampling_params import SamplingParams
from tests.harness import ROOT, free_port

# Transformers changes globals while it makes a model.
_LOADING = threading.Lock()
_DEADLINE_S = 60.0
"""A generation here takes less than a second; one that has not ended by then never does."""


def language(pair: tuple[Path, Path], verifiers: int = 1, **values: Any) -> Topology:
    """The shipped topology for so many verifiers with another pair of models; `values` by keys as `--set` takes them,
    with `__` for a dot."""
    target, draft = pair
    overrides = [f"model.target={target}", f"model.draft={draft}", "deterministic=true"]
    if verifiers > 1:
        overrides.append(f"groups.verifier.ranks={verifiers}")
    overrides += [f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in values.items()]
    return load_topology(ROOT / "topologies" / f"speculate-{2 if verifiers == 1 else 3}.yaml", overrides)


def spec_of(
    topology: Topology,
    prompts: Sequence[str],
    max_tokens: int = 24,
    seed: int = 3,
    temperature: float = 1.0,
    **more: Any,
) -> GenerateSpec:
    """A spec; what sampling can be told goes with the rest."""
    chosen = {name: more.pop(name) for name in ("top_k", "top_p", "repetition_penalty") if name in more}
    params = SamplingParams(temperature, seed=seed, coupling=Coupling(topology.speculation.coupling), **chosen)
    return GenerateSpec(topology, tuple(prompts), max_tokens, seed, params, **more)


def state_of(folder: Path) -> tuple[object, ...]:
    """Equal as long as nobody has changed a file of a folder."""
    return (folder, *sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in folder.glob("*")))


_REFERENCES: dict[str, LanguageResult] = {}


def serial(spec: GenerateSpec) -> LanguageResult:
    """The reference. It has no window, depth or drafter, so specs that differ in nothing else share one."""
    topology = spec.topology
    if topology.tiers or spec.park is not None or spec.resumed or spec.out is not None:
        return generate_serial(spec, Models.of(spec), None)
    read = topology.deterministic, topology.speculation.rows, topology.groups[topology.stages["verify"].group]
    key = repr((state_of(Path(topology.model.target)), read, replace(spec, topology=None, plain=False)))
    if key not in _REFERENCES:
        _REFERENCES[key] = generate_serial(spec, Models.of(spec), None)
    return _REFERENCES[key]


class Cluster:
    """Workers of one generation. `prepare` is given the actor of each before it starts, on the thread that runs it."""

    def __init__(
        self,
        spec: GenerateSpec,
        prepare: Callable[[LanguageActor], None] = lambda actor: None,
        progress: Callable[[int], None] = lambda done: None,
    ) -> None:
        # As it travels to a worker process.
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "spec.json"
            write_spec(file, spec)
            found = read_spec(file)
        if not isinstance(found, GenerateSpec):
            raise AssertionError(f"{found} is no spec of a generation")
        self.spec = found
        self.prepare, self.progress = prepare, progress
        self.actors: dict[int, LanguageActor] = {}
        self.result: LanguageResult | None = None
        self.errors: dict[int, BaseException] = {}
        self.run_dir = Path()
        """Where timelines go, of a spec with `out`"""
        self._port = free_port()

    def run(self, failing: Sequence[int] = ()) -> LanguageResult:
        """Run all ranks to the end. Raises what the first of them that failed raised, unless it was to fail."""
        interval = sys.getswitchinterval()
        threads = [
            threading.Thread(target=self._rank, args=(rank,), name=f"rank {rank}", daemon=True)
            for rank in range(self.spec.topology.world_size)
        ]
        for thread in threads:
            thread.start()
        for rank, thread in enumerate(threads):
            thread.join(_DEADLINE_S)
            if thread.is_alive():
                raise AssertionError(f"rank {rank} still runs after {_DEADLINE_S:g} s; errors so far: {self.errors}")
        sys.setswitchinterval(interval)
        assert sorted(self.errors) == sorted(failing), self.errors
        assert self.result is not None
        return self.result

    def _rank(self, rank: int) -> None:
        try:
            topology = self.spec.topology
            roles, models = Roles.of(topology), Models.of(self.spec)
            rendezvous = Rendezvous(rank, topology.world_size, "127.0.0.1", self._port, 20.0)
            with Endpoint(rendezvous, topology, roles.routes(), expendable=[roles.drafter]) as endpoint:
                with _LOADING:
                    worker, actor = make_worker(self.spec, rank, endpoint, self.run_dir, self.progress, models, None)
                self.actors[rank] = actor
                self.prepare(actor)
                reports = worker.run()
                if isinstance(actor, LeaderActor):
                    assert reports is not None
                    self.result = actor.result(reports)
        except BaseException as error:
            self.errors[rank] = error
            print("".join(traceback.format_exception(error)), file=sys.stderr)


def generate(spec: GenerateSpec) -> LanguageResult:
    """All ranks, to the end."""
    return Cluster(spec).run()


def texts(result: LanguageResult) -> list[tuple[str, list[int], str]]:
    """What must not depend on how it came about."""
    return [(text.text, text.token_ids, text.finish_reason) for text in result.sessions]
