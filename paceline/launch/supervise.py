"""Watches the workers of a run and ends all of them when one fails, hangs, or the user asks for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from paceline.launch.errors import Interrupts, RunFailedError
from paceline.launch.failure import End, Failure, cause_of
from paceline.launch.process import Worker, WorkerCommand, stop
from paceline.launch.run_dir import ProgressBoard, ProgressRow, RunDir
from paceline.launch.worker_main import STACKS_SIGNAL

__all__ = ["HANG_TIMEOUT_S", "Supervisor"]

HANG_TIMEOUT_S = 60.0
"""How long a worker may be silent before it counts as hung."""

_START_TIMEOUT_S = 120.0
# Until its first report a worker loads libraries and weights and meets the others.

_POLL_S = 0.03
# How long the cause of a failure may take to show up after its consequences: on a busy machine a worker needs a second
# to write its account and end.
_SETTLE_S = 2.0
# How long a worker that hangs gets to write down where.
_STACKS_S = 0.1
_STACK_LINES = 8
_LOG_LINES = 15
# The kernel's letters for a process that was stopped by a signal or a tracer.
_STOPPED = ("T", "t")


class Supervisor:
    """Starts one worker per command and sees them through. It judges workers by what they report about their progress:
    a socket's heartbeat would still beat in a process whose interpreter hangs."""

    def __init__(
        self,
        commands: Sequence[WorkerCommand],
        run_dir: RunDir,
        interrupts: Interrupts,
        hang_timeout_s: float = HANG_TIMEOUT_S,
        watch: Callable[[Sequence[ProgressRow]], None] | None = None,
        debug: bool = False,
    ) -> None:
        """`watch` is called at every look at the workers, with what each has reported, by rank."""
        self._commands = commands
        self._run_dir = run_dir
        self._interrupts = interrupts
        self._hang_timeout_s = hang_timeout_s
        self._watch = watch
        self._debug = debug
        self._workers: list[Worker] = []
        self._expendable = {command.rank for command in commands if command.expendable}
        # Those of them that have reported: until then the others wait for them.
        self._joined: set[int] = set()

    def run(self) -> None:
        """Start the workers and return when all have ended well.

        Raises `RunFailedError` naming the worker at fault, or `Interrupted`; no worker is left in either case.
        """
        board = ProgressBoard(self._run_dir.progress, len(self._commands))
        try:
            for command in self._commands:
                worker = Worker(command, self._run_dir.log(command.rank))
                self._workers.append(worker)
                self._run_dir.note_pid(command.rank, worker.pid)
            self._see_through(board)
        finally:
            asked = self._interrupts.count
            stop(self._workers, hurry=lambda: self._interrupts.count > max(asked, 1))
            board.close()

    def _see_through(self, board: ProgressBoard) -> None:
        rows = [ProgressRow(0, 0)] * len(self._workers)
        heard = [time.monotonic()] * len(self._workers)
        while True:
            # Order matters: a worker that ends after the look at the ends is seen by the next look.
            self._interrupts.check()
            ends = self._ends()
            self._joined |= {rank for rank in self._expendable if board.read(rank).reports}
            if self._blamed(ends):
                raise self._failed(ends)
            now = time.monotonic()
            for rank in range(len(rows)):
                row = board.read(rank)
                if row != rows[rank] or any(end.rank == rank for end in ends):
                    rows[rank], heard[rank] = row, now
            if self._watch is not None:
                try:
                    self._watch(rows)
                except OSError as error:
                    # Raised as an end of the run, so that what is done is kept.
                    raise RunFailedError(f"standard output can't be written: {error.strerror or error}") from error
            if len(self._needed(ends)) == len(self._workers) - len(self._expendable):
                # One that could be done without may hang; it is ended with all else.
                return
            judged = [w for w in self._workers if w.rank not in self._joined]
            silent = [w for w in judged if self._is_silent(w, rows[w.rank], now - heard[w.rank])]
            if silent:
                raise self._hung(silent, heard, now)
            time.sleep(_POLL_S)

    def _is_silent(self, worker: Worker, row: ProgressRow, silence_s: float) -> bool:
        """Whether a worker has said nothing for too long. One that starts has longer, unless it is stopped."""
        if silence_s <= self._hang_timeout_s:
            return False
        return bool(row.reports) or silence_s > _START_TIMEOUT_S or worker.state() in _STOPPED

    def _ends(self) -> list[End]:
        """The workers that have ended, in order of ranks."""
        ends = []
        for worker in self._workers:
            code = worker.poll()
            if code is not None:
                ends.append(End(worker.rank, worker.name, code, Failure.read(self._run_dir.path, worker.rank)))
        return ends

    def _blamed(self, ends: Sequence[End]) -> list[End]:
        """The failures that end the run."""
        return [end for end in ends if end.code and end.rank not in self._joined]

    def _needed(self, ends: Sequence[End]) -> list[End]:
        return [end for end in ends if end.rank not in self._expendable]

    def _failed(self, ends: list[End]) -> RunFailedError:
        """The error for the end that explains the others, which may not have been seen first."""
        end_s = time.monotonic() + _SETTLE_S
        cause = cause_of(self._blamed(ends))
        while not cause.conclusive and time.monotonic() < end_s and len(ends) < len(self._workers):
            time.sleep(0.01)
            ends = self._ends()
            cause = cause_of(self._blamed(ends))
        if not cause.conclusive and (stopped := self._stopped()):
            # The others only noticed that it does not answer.
            return RunFailedError(
                f"{stopped[0].name} does not answer: the process is stopped, as by SIGSTOP; {cause.name} gave up on it",
                self._detail(cause) if self._debug else "",
            )
        full = cause.failure is None and self._run_dir.full
        room = f"; the disk of the run's folder {self._run_dir.path} is full: make room, or set TMPDIR" if full else ""
        return RunFailedError(f"{cause}{room}", self._detail(cause))

    def _stopped(self) -> list[Worker]:
        """Workers that a signal or a tracer stopped."""
        return [worker for worker in self._workers if worker.state() in _STOPPED]

    def _detail(self, end: End) -> str:
        """The end of a worker's log, where it is the only trace of the cause or the user wants all of it."""
        if end.failure is not None:
            return end.failure.traceback if self._debug else ""
        lines = self._run_dir.log(end.rank).read_text(errors="replace").splitlines()
        kept = lines if self._debug else lines[-_LOG_LINES:]
        return "\n".join([f"end of the log of rank {end.rank}:", *kept]) if kept else ""

    def _hung(self, silent: list[Worker], heard: list[float], now: float) -> RunFailedError:
        """Ranks wait for one another, so that one hanging worker silences others: a stopped one is the cause, else the
        one that computes, else the one that was silent first."""
        states = {worker.rank: worker.state() for worker in self._workers}
        stopped = [worker for worker in self._workers if states[worker.rank] in _STOPPED]
        computing = [worker for worker in silent if states[worker.rank] == "R"]
        worst = min(stopped or computing or silent, key=lambda worker: heard[worker.rank])
        return RunFailedError(
            f"{worst.name} hangs: no progress for {now - heard[worst.rank]:.0f} s"
            + (" (the process is stopped, as by SIGSTOP)" if stopped else "")
            + "; where a stage really takes this long, raise --hang-timeout",
            "" if stopped else self._stacks(worst),
        )

    def _stacks(self, worker: Worker) -> str:
        """Where a worker hangs: the innermost calls of its main thread, or with `debug` all of its log."""
        log = self._run_dir.log(worker.rank)
        before = log.stat().st_size
        worker.send(STACKS_SIGNAL)
        time.sleep(_STACKS_S)
        if self._debug:
            return log.read_text(errors="replace")
        text = log.read_bytes()[before:].decode(errors="replace")
        return "\n".join(text[text.find("Current thread") :].splitlines()[:_STACK_LINES])
