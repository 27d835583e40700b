"""`paceline run`, and `python -m paceline.launch` under torchrun: run a topology and say what came out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from paceline.launch.commands.guard import guarded
from paceline.launch.commands.options import AsJson, Debug, HangTimeout, LauncherName, Overrides, TopologyFile, as_path
from paceline.launch.commands.start import audience_of, loaded_for, preflight, start
from paceline.launch.console import Display
from paceline.launch.supervise import HANG_TIMEOUT_S
from paceline.launch.workload import workload_class, wrong_command
from paceline.pipeline.topology import LanguageTopology, Schedule
from paceline.runtime.spec import RunSpec

__all__ = ["run"]


@guarded
def run(
    context: typer.Context,
    topology: TopologyFile,
    frames: Annotated[int, typer.Option(min=1, help="Frames of each session.")] = 64,
    sessions: Annotated[int, typer.Option(min=1, max=4096, help="Sessions that run side by side.")] = 1,
    seed: Annotated[int | None, typer.Option(min=0, max=2**63 - 1, help="Seed; the topology's if left out.")] = None,
    serial: Annotated[
        bool, typer.Option("--serial", help="Serial reference: one process, one item at a time.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", parser=as_path, help="Collect frames, summary, trace and logs.")
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
    replay: Annotated[
        Path | None, typer.Option(metavar="JOURNAL", parser=as_path, help="Take an earlier run's decisions.")
    ] = None,
    kv_hash: Annotated[bool, typer.Option("--kv-hash", help="Hash all KV, to compare runs bit for bit.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress and, without --json, no summary.")] = False,
    launcher: LauncherName = None,
    hang_timeout: HangTimeout = HANG_TIMEOUT_S,
    debug: Debug = False,
) -> None:
    """Run a topology on this machine, one process per rank, and print what came out.

    A session may fail alone, with a warning; the others go on.

    Exit codes: 0; 1 the run failed, or every session did; 2 the topology or the arguments are wrong and nothing was
    started; 130 interrupted by Ctrl-C; 143 by SIGTERM.
    """
    with preflight(context, "run", launcher, serial) as launched:
        loaded = loaded_for(launched, topology, overrides)
        if isinstance(loaded, LanguageTopology):
            raise wrong_command(topology, loaded)
        first = launched is None or launched.rank == 0
        display = Display(frames * sessions, quiet or not first)
        spec = RunSpec(
            topology=loaded,
            frames=frames,
            sessions=sessions,
            seed=loaded.seed if seed is None else seed,
            serial=serial or loaded.schedule is Schedule.serial,
            out=None if out is None else out.resolve(),
            replay=None if replay is None else replay.resolve(),
            kv_hash=kv_hash,
        )
        workload = workload_class(loaded)(spec, audience_of(display, not quiet, as_json))
        workload.check(topology)
    with display:
        start(workload, launcher, launched, hang_timeout, debug)
