"""`paceline run`, and `python -m paceline.launch` under torchrun: run a topology and say what came out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from paceline.launch.commands.guard import guarded
from paceline.launch.commands.options import AsJson, Debug, HangTimeout, LauncherName, Overrides, TopologyFile, as_path
from paceline.launch.console import make_console
from paceline.launch.display import Display
from paceline.launch.errors import ArgumentError
from paceline.launch.files import check_curve, check_policies
from paceline.launch.folders import make_writable
from paceline.launch.frames import Audience, FrameWorkload
from paceline.launch.journal import check_replay, read_journal
from paceline.launch.launchers import check_launcher, launch
from paceline.launch.summary import Summary, check_sessions
from paceline.launch.supervise import HANG_TIMEOUT_S
from paceline.launch.torchrun import Launched, recorded, refusals
from paceline.launch.weights import check_weights, read_model_file
from paceline.launch.world_tiers import check_world_tiers
from paceline.pipeline.liveness import check_liveness
from paceline.pipeline.load import load_topology
from paceline.pipeline.topology import FrameTopology, Schedule
from paceline.runtime.spec import RunSpec

__all__ = ["LAUNCHED", "run"]

LAUNCHED = object()
"""As the context's object: this process may be one rank among those that a launcher started."""


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
    launched = Launched.from_environment() if context.obj is LAUNCHED else None
    first = launched is None or launched.rank == 0
    with refusals(launched):
        check_launcher(launcher, launched)
        loaded = _check(topology, overrides or [], launched, serial, out, replay, frames, sessions)
        if not serial:
            check_world_tiers(loaded, frames, sessions)
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
    with Display(frames * sessions, quiet or not first) as display:

        def show(made: Summary) -> None:
            display.clear()
            _print(made, spec.out, as_json, quiet)

        workload = FrameWorkload(spec, Audience(display, show, display.writing))
        summary = launch(workload, launcher, launched, hang_timeout, debug)
    if summary is not None:
        with recorded(launched):
            check_sessions(summary, lambda session: session["failed"] is not None)


def _print(summary: Summary, out: Path | None, as_json: bool, quiet: bool) -> None:
    for warning in summary["warnings"]:
        print(f"paceline: warning: {warning}", file=sys.stderr, flush=True)
    if not quiet:
        from paceline.launch.tables import print_summary

        print_summary(make_console(), summary)
        if out is not None:
            print(f"outputs in {out}")
    if as_json:
        print(json.dumps(summary))
    sys.stdout.flush()


def _check(
    file: Path,
    overrides: list[str],
    launched: Launched | None,
    serial: bool,
    out: Path | None,
    replay: Path | None,
    frames: int,
    sessions: int,
) -> FrameTopology:
    """The topology, once everything is known to be right that can be known before a process is started."""
    topology = load_topology(file, overrides, None if launched is None else launched.world_size)
    if topology.workload == "language":
        raise ArgumentError(f"{file} makes text; start it with `paceline generate`")
    if launched is not None:
        launched.use_threads(topology)
    shape = read_model_file(topology).shape
    deadlock = check_liveness(topology, shape)
    if deadlock is not None:
        raise ArgumentError(f"{file}: {deadlock}")
    check_weights(topology)
    check_policies(topology)
    if not serial:
        check_curve(topology)
    if launched is not None and serial:
        raise ArgumentError("--serial runs in one process; start it with `paceline run`, without torchrun")
    if replay is not None:
        check_replay(replay, read_journal(replay), topology)
    if out is not None:
        make_writable(f"--out {out}", out, frames * sessions * shape.frame_bytes)
    return topology
