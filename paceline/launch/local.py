"""Runs a workload as processes of this machine, one per rank."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import msgspec

from paceline.launch.errors import Interrupts, LaunchError, RunFailedError, raise_on_sigterm
from paceline.launch.process import WorkerCommand, can_fork, thread_environment
from paceline.launch.run_dir import ProgressRow, RunDir
from paceline.launch.summary import Summary
from paceline.launch.supervise import HANG_TIMEOUT_S, Supervisor
from paceline.launch.worker_main import STORE_VARIABLE, work
from paceline.launch.workload import Workload
from paceline.pipeline.placement import Placement
from paceline.runtime.auth import make_secret
from paceline.runtime.result import Result

__all__ = ["run_local"]

ResultT = TypeVar("ResultT", bound=Result[Any])

_WORKER = ("-P", "-m", "paceline.launch.worker_main")
"""Without the working directory on the path of modules: what lies there is the user's, and none of ours."""

_LOOPBACK = "127.0.0.1"


def run_local(
    workload: Workload[Any],
    hang_timeout_s: float = HANG_TIMEOUT_S,
    debug: bool = False,
    worker: Sequence[str] | None = None,
) -> Summary:
    """Run a workload in worker processes, one per rank, or a single one for the serial reference; write the outputs
    that the user asked for and return the summary.

    `worker` are the arguments with which Python starts another worker than Paceline's own. The loss of an expendable
    rank does not end the run. Raises `RunFailedError`, `OutputsError` or `Interrupted`, and leaves no process and no
    file of the run behind but the outputs: they hold what was done, also of a run that ended early.
    """
    if worker is None and can_fork():
        # The workers have it then, and need not import it again. It takes seconds: signals are not only noted here.
        with raise_on_sigterm():
            workload.import_worker()
    with RunDir() as run_dir:
        try:
            result = _supervised(workload, run_dir, worker, hang_timeout_s, debug)
        except LaunchError as error:
            with raise_on_sigterm():
                workload.finish_early(error, run_dir)
            raise
        finally:
            if workload.out is not None:
                run_dir.keep_logs(workload.out)
        with raise_on_sigterm():
            return workload.finish(result, run_dir)


def _supervised(
    workload: Workload[ResultT], run_dir: RunDir, worker: Sequence[str] | None, hang_timeout_s: float, debug: bool
) -> ResultT:
    leader = 0 if workload.serial else workload.leader

    def look(rows: Sequence[ProgressRow]) -> None:
        workload.progress(rows[leader].count)

    workload.begin(run_dir)
    with Interrupts() as interrupts, _listener() as listener:
        make_secret(run_dir.path)
        workload.write(run_dir.spec)
        argv = [sys.executable, *(worker or _WORKER), str(run_dir.path)]
        main = partial(work, run_dir.path, workload) if worker is None else None
        commands = _commands(workload, listener, argv, main)
        Supervisor(commands, run_dir, interrupts, hang_timeout_s, look, debug).run()
    try:
        return workload.decode(run_dir.result.read_bytes())
    except FileNotFoundError:
        raise RunFailedError(f"{commands[leader].name} ended well but left no result; this is a bug") from None
    except msgspec.DecodeError as error:
        raise RunFailedError(f"{commands[leader].name} left a result that can't be read: {error}") from error


def _listener() -> socket.socket:
    """A bound socket for the rendezvous store. Rank 0 inherits it, so there is no moment at which the port is free."""
    return socket.create_server((_LOOPBACK, 0), backlog=512)


def _commands(
    workload: Workload[Any], listener: socket.socket, argv: Sequence[str], main: Callable[[], None] | None
) -> list[WorkerCommand]:
    if workload.serial:
        env = {"RANK": "0", "WORLD_SIZE": "1", **thread_environment(workload.serial_threads)}
        return [WorkerCommand(0, "the serial worker", argv, env, main=main)]
    placement = Placement(workload.topology)
    commands = []
    for rank in range(placement.world_size):
        env = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(placement.world_size),
            "LOCAL_WORLD_SIZE": str(placement.world_size),
            "MASTER_ADDR": _LOOPBACK,
            "MASTER_PORT": str(listener.getsockname()[1]),
            **thread_environment(workload.topology.groups[placement.group_of_rank(rank)].threads),
        }
        inherit: tuple[int, ...] = ()
        if rank == 0:
            env[STORE_VARIABLE] = str(listener.fileno())
            inherit = (listener.fileno(),)
        expendable = rank in workload.expendable
        commands.append(WorkerCommand(rank, workload.rank_name(rank), argv, env, inherit, expendable, main))
    return commands
