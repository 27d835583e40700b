"""Runs a topology as processes of this machine, one per rank."""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from functools import partial

import msgspec

from paceline.launch.errors import LaunchError, RunFailedError
from paceline.launch.finish import NOBODY, Audience, finish, finish_early
from paceline.launch.fork import can_fork
from paceline.launch.interrupts import Interrupts, raise_on_sigterm
from paceline.launch.process import WorkerCommand
from paceline.launch.progress import ProgressRow
from paceline.launch.run_dir import RunDir
from paceline.launch.spec_file import write_spec
from paceline.launch.summary import Summary
from paceline.launch.supervise import HANG_TIMEOUT_S, Supervisor
from paceline.launch.threads import thread_environment
from paceline.launch.worker_main import STORE_VARIABLE, work
from paceline.pipeline.placement import Placement
from paceline.runtime.result import RunResult
from paceline.runtime.secret import make_secret
from paceline.runtime.spec import RunSpec

__all__ = ["coordinator_rank", "rank_name", "run_local"]

WORKER = ("-P", "-m", "paceline.launch.worker_main")
"""Without the working directory on the path of modules: what lies there is the user's, and none of ours."""

_LOOPBACK = "127.0.0.1"


def run_local(
    spec: RunSpec,
    audience: Audience = NOBODY,
    hang_timeout_s: float = HANG_TIMEOUT_S,
    debug: bool = False,
    worker: Sequence[str] | None = None,
) -> Summary:
    """Run a spec in worker processes, one per rank, or a single one for the serial reference; write what `spec.out`
    asks for and return the summary.

    `worker` are the arguments with which Python starts another worker than Paceline's own. Raises `RunFailedError`,
    `OutputsError` or `Interrupted`, and leaves no process and no file of the run behind but those in `spec.out`: there
    is what was done, also of a run that ended early.
    """
    if worker is None and can_fork():
        # The workers have it then, and need not import torch again. It takes seconds: signals are not only noted here.
        with raise_on_sigterm():
            import paceline.runtime.serial
            import paceline.runtime.worker  # noqa: F401
    with RunDir() as run_dir:
        try:
            result = _supervised(spec, run_dir, worker, audience, hang_timeout_s, debug)
        except LaunchError as error:
            with raise_on_sigterm():
                finish_early(spec, run_dir.path, error, audience)
            raise
        finally:
            if spec.out is not None:
                run_dir.keep_logs(spec.out)
        with raise_on_sigterm():
            return finish(spec, result, run_dir.path, audience)


def _supervised(
    spec: RunSpec,
    run_dir: RunDir,
    worker: Sequence[str] | None,
    audience: Audience,
    hang_timeout_s: float,
    debug: bool,
) -> RunResult:
    coordinator = 0 if spec.serial else coordinator_rank(spec)

    def look(rows: Sequence[ProgressRow]) -> None:
        audience.frames(rows[coordinator].count)

    with Interrupts() as interrupts, _listener() as listener:
        make_secret(run_dir.path)
        write_spec(run_dir.spec, spec)
        commands = _commands(spec, run_dir, listener, worker)
        Supervisor(commands, run_dir, interrupts, hang_timeout_s, look, debug).run()
    try:
        return msgspec.msgpack.decode(run_dir.result.read_bytes(), type=RunResult)
    except FileNotFoundError:
        raise RunFailedError(f"{commands[coordinator].name} ended well but left no result; this is a bug") from None
    except msgspec.DecodeError as error:
        raise RunFailedError(f"{commands[coordinator].name} left a result that can't be read: {error}") from error


def rank_name(placement: Placement, rank: int, sessions: int) -> str:
    """What messages call a rank: `worker rank 1 (group late: step1, decode)`."""
    stages = ", ".join(dict.fromkeys(stage for stage, _ in placement.streams(rank, sessions)))
    group = placement.group_of_rank(rank)
    return f"worker rank {rank} (group {group}: {stages})" if stages else f"worker rank {rank} (group {group}, idle)"


def coordinator_rank(spec: RunSpec) -> int:
    """The rank of source and sink."""
    sink = next(name for name, stage in spec.topology.stages.items() if stage.kind == "sink")
    return Placement(spec.topology).rank_of(sink, 0)


def _listener() -> socket.socket:
    """A bound socket for the rendezvous store. Rank 0 inherits it, so there is no moment at which the port is free."""
    return socket.create_server((_LOOPBACK, 0), backlog=512)


def _commands(
    spec: RunSpec, run_dir: RunDir, listener: socket.socket, worker: Sequence[str] | None
) -> list[WorkerCommand]:
    argv = [sys.executable, *(worker or WORKER), str(run_dir.path)]
    main = partial(work, run_dir.path) if worker is None else None
    groups = spec.topology.groups
    if spec.serial:
        threads = max(group.threads for group in groups.values())
        env = {"RANK": "0", "WORLD_SIZE": "1", **thread_environment(threads)}
        return [WorkerCommand(0, "the serial worker", argv, env, main=main)]
    placement = Placement(spec.topology)
    commands = []
    for rank in range(placement.world_size):
        env = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(placement.world_size),
            "LOCAL_WORLD_SIZE": str(placement.world_size),
            "MASTER_ADDR": _LOOPBACK,
            "MASTER_PORT": str(listener.getsockname()[1]),
            **thread_environment(groups[placement.group_of_rank(rank)].threads),
        }
        inherit: tuple[int, ...] = ()
        if rank == 0:
            env[STORE_VARIABLE] = str(listener.fileno())
            inherit = (listener.fileno(),)
        name = rank_name(placement, rank, spec.sessions)
        commands.append(WorkerCommand(rank, name, argv, env, inherit, main=main))
    return commands
