"""Generates in worker processes of this machine, one per rank."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec

from paceline.launch.errors import LaunchError, RunFailedError
from paceline.launch.fork import can_fork
from paceline.launch.interrupts import Interrupts, raise_on_sigterm
from paceline.launch.language.outputs import keep_texts, write_language_outputs
from paceline.launch.language.spec_file import write_generate_spec
from paceline.launch.language.summary import summarize_language
from paceline.launch.local import WORKER
from paceline.launch.process import WorkerCommand
from paceline.launch.progress import ProgressRow
from paceline.launch.run_dir import RunDir
from paceline.launch.summary import Summary
from paceline.launch.supervise import HANG_TIMEOUT_S, Supervisor
from paceline.launch.threads import thread_environment
from paceline.launch.worker_main import STORE_VARIABLE, work
from paceline.pipeline.placement import Placement
from paceline.runtime.language.models import Models
from paceline.runtime.language.result import LanguageResult
from paceline.runtime.language.roles import Roles
from paceline.runtime.language.spec import GenerateSpec
from paceline.runtime.secret import make_secret

__all__ = ["generate_local"]

_LOOPBACK = "127.0.0.1"


def generate_local(
    spec: GenerateSpec,
    watch: Callable[[Path], Callable[[int], None] | None] = lambda stream: None,
    hang_timeout_s: float = HANG_TIMEOUT_S,
    debug: bool = False,
    worker: Sequence[str] | None = None,
    models: Models | None = None,
) -> Summary:
    """Generate, and return the summary. `watch` is given the file that committed text is written to, and returns what
    is called now and then with the number of sessions that are done.

    `worker` are the arguments with which Python starts another worker than Paceline's own; `models` is what is known of
    the spec's models already.

    A drafter that dies or hangs does not end the run. Raises `RunFailedError` or `Interrupted`, and leaves no process
    and no file behind.
    """
    if worker is None and can_fork():
        # The workers have it then, and need not import torch and Transformers again. It takes seconds, so signals are
        # not only noted here.
        with raise_on_sigterm():
            import paceline.runtime.language.run
            import paceline.runtime.language.serial  # noqa: F401
    with RunDir() as run_dir:
        look = watch(run_dir.stream)
        home = 0 if spec.serial else Roles.of(spec.topology).first

        def see(rows: Sequence[ProgressRow]) -> None:
            if look is not None:
                look(rows[home].count)

        with Interrupts() as interrupts, _listener() as listener:
            make_secret(run_dir.path)
            write_generate_spec(run_dir.spec, spec)
            commands = _commands(spec, run_dir, listener, worker, models)
            try:
                Supervisor(commands, run_dir, interrupts, hang_timeout_s, see, debug).run()
            except LaunchError as error:
                if spec.out is not None:
                    keep_texts(spec.out, spec, run_dir.stream, str(error))
                raise
        try:
            result = msgspec.msgpack.decode(run_dir.result.read_bytes(), type=LanguageResult)
        except FileNotFoundError:
            raise RunFailedError(f"{commands[home].name} ended well but left no result; this is a bug") from None
        except msgspec.DecodeError as error:
            raise RunFailedError(f"{commands[home].name} left a result that can't be read: {error}") from error
        if look is not None:
            look(len(spec.prompts))
        summary = summarize_language(spec, result)
        if spec.out is not None:
            write_language_outputs(spec.out, spec, result, summary)
        return summary


def _listener() -> socket.socket:
    return socket.create_server((_LOOPBACK, 0), backlog=512)


def _commands(
    spec: GenerateSpec,
    run_dir: RunDir,
    listener: socket.socket,
    worker: Sequence[str] | None,
    models: Models | None,
) -> list[WorkerCommand]:
    argv = [sys.executable, *(worker or WORKER), str(run_dir.path)]
    main = partial(work, run_dir.path, models) if worker is None else None
    placement, roles = Placement(spec.topology), Roles.of(spec.topology)
    groups = spec.topology.groups
    if spec.serial:
        threads = groups[placement.group_of_rank(roles.first)].threads
        env = {"RANK": "0", "WORLD_SIZE": "1", **thread_environment(threads)}
        return [WorkerCommand(0, "the serial worker", argv, env, main=main)]
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
        expendable = rank == roles.drafter
        commands.append(WorkerCommand(rank, roles.name(rank), argv, env, inherit, expendable, main))
    return commands
