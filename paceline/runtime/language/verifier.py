"""A verifier's rank: it forwards windows, and the last one judges them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from paceline.pipeline.speculation.acceptor import Acceptor, Check
from paceline.pipeline.speculation.counters import Counters
from paceline.pipeline.speculation.window import Coupling, FinishReason, Verdict, Window
from paceline.runtime.actor import Done, Work
from paceline.runtime.endpoint import Endpoint
from paceline.runtime.language.actor import LanguageActor
from paceline.runtime.language.messages import Failed, HiddenStates, Message, ParkAck, SessionEnd, SessionStart
from paceline.runtime.language.parked import SessionStore
from paceline.runtime.spec import GenerateSpec
from paceline.runtime.timeline import Span
from paceline.stages.lm.sequence_kv import SequenceError
from paceline.stages.lm.verify_stage import Case, VerifyStage

__all__ = ["Acceptors", "PendingWindow", "VerifierActor"]


@dataclass(frozen=True, slots=True)
class PendingWindow:
    """A window to forward through this rank's layers, with what came with it."""

    window: Window
    hidden: Tensor | None = None
    chances: Tensor | None = None
    rows: Tensor | None = None


class Acceptors:
    """One acceptor for each session."""

    def __init__(self, stage: VerifyStage, coupling_of: Callable[[int], Coupling], eos: Collection[int]) -> None:
        self._stage, self._coupling_of, self._eos = stage, coupling_of, eos
        self._acceptors: dict[int, Acceptor] = {}
        self._seeds: dict[int, int] = {}
        self.counters = Counters()

    def open(self, opened: SessionStart) -> None:
        """A session begins."""
        self._acceptors[opened.session] = Acceptor(
            opened.session, opened.tokens, opened.limit, self._coupling_of(opened.session), self._eos,
            max(0, opened.forwarded),
        )  # fmt: skip
        self._seeds[opened.session] = opened.seed

    def close(self, session: int) -> None:
        """Free a session."""
        self.counters.add(self._acceptors.pop(session).counters)
        del self._seeds[session]

    def plan(self, windows: Sequence[PendingWindow]) -> list[Check | None]:
        """What each window decides; None where it decides nothing any more."""
        return [self._acceptors[w.window.session].plan(w.window) for w in windows]

    def verdicts(self, windows: Sequence[PendingWindow], checks: Sequence[Check | None], ran: bool) -> list[Verdict]:
        """The verdicts, in order; `ran` says whether windows without a check were forwarded in part."""
        cases = [self._case(w, check) for w, check in zip(windows, checks, strict=True) if check is not None]
        rulings = iter(self._stage.rule(cases))
        found = []
        for w, check in zip(windows, checks, strict=True):
            acceptor = self._acceptors[w.window.session]
            if check is None:
                found.append(acceptor.dismiss(w.window, forwarded=ran))
                continue
            ruling = next(rulings)
            verdict = acceptor.settle(check, ruling.accepted, ruling.replacement, ruling.extra)
            self._stage.rolled_back(w.window.session, verdict.forwarded, w.window)
            found.append(verdict)
        return found

    def finish(self, session: int, reason: FinishReason, length: int | None) -> Verdict | None:
        """End a session from outside; None where it is over already."""
        acceptor = self._acceptors[session]
        return None if acceptor.finished is not None else acceptor.finish(reason, length)

    def _case(self, w: PendingWindow, check: Check) -> Case:
        acceptor = self._acceptors[w.window.session]
        tokens = [*acceptor.tokens[: w.window.start], *w.window.tokens]
        return Case(check, tokens, self._seeds[w.window.session], w.chances, w.rows)


class VerifierActor(LanguageActor):
    """A run behind the first: windows come from the run before, hidden states or verdicts go on."""

    role = "verifier"

    def __init__(
        self,
        spec: GenerateSpec,
        rank: int,
        endpoint: Endpoint,
        notify: Callable[[], None],
        name: str,
        stage: VerifyStage,
        eos: Collection[int],
    ) -> None:
        super().__init__(spec, rank, endpoint, notify, name)
        self.stage = stage
        self._parked: dict[int, bool] = {}
        """Sessions that this rank was asked to park, and whether it did, until those before it have said the same."""
        number = self.roles.verifiers.index(rank)
        self._keeper = SessionStore(spec, number, f"rank {rank}", self.failures, notify)
        last = rank == self.roles.last
        self.acceptors = (
            Acceptors(stage, lambda session: spec.options(session).sampling.effective_coupling, eos) if last else None
        )
        self._inbox: dict[int, deque[Message]] = {}
        self._failed: set[int] = set()
        """Sessions that can't go on here, until they are closed: windows that still come for them are dropped."""
        if rank != self.roles.first:
            self.mailbox.listen(self._ring, self.roles.verifiers[number - 1])

    @property
    def _ring(self) -> int:
        if self.roles.ring is None:
            raise ValueError("one verifier alone has no ring")
        return self.roles.ring

    def on_items(self) -> bool:
        """Take what came."""
        if self.busy:
            return False
        messages = self.mailbox.take()
        for _, _, message in messages:
            self._put(message)
        return bool(messages)

    def ready(self) -> Work | None:
        """One window of each session that has one; what came before it is handled."""
        if self.busy:
            return None
        windows: list[PendingWindow] = []
        for session in list(self._inbox):
            waiting = self._inbox[session]
            while waiting:
                message = waiting.popleft()
                if isinstance(message, HiddenStates) and session in self._failed:
                    continue
                if isinstance(message, HiddenStates):
                    windows.append(PendingWindow(message.window, message.hidden, message.chances, message.rows))
                    break
                self._see(message)
            if not waiting:
                self._inbox.pop(session, None)
        return self.forward(windows) if windows else None

    @property
    def finished(self) -> bool:
        """The leader ends all ranks at once, but the end of a session comes through the verifiers."""
        return self.ended and not (self.busy or self._inbox or self.stage.sessions or self.mailbox.pending)

    def forward(self, windows: Sequence[PendingWindow]) -> Work:
        """A forward of windows of different sessions through this rank's layers."""
        checks = [None] * len(windows) if self.acceptors is None else self.acceptors.plan(windows)
        run = [
            index
            for index, (w, check) in enumerate(zip(windows, checks, strict=True))
            if self.acceptors is None or check is not None
        ]
        spans = tuple(
            Span(self.stage_name, windows[index].window.session, "verify", ((windows[index].window.start, -1),))
            for index in run
        )
        return self.work(partial(self._states, windows, checks, run), spans, (windows, checks))

    def on_done(self, done: Done) -> None:
        """Pass on what came of windows: hidden states, or verdicts on the last rank."""
        windows, checks = done.work.context
        states, failed, tokens = done.result()
        self.passed(done, tokens)
        rest = [index for index, w in enumerate(windows) if w.window.session not in failed]
        if self.acceptors is None:
            for index in rest:
                w = windows[index]
                self.send_on(HiddenStates(w.window, states[index], w.chances, w.rows))
        elif rest:
            some, theirs = [windows[index] for index in rest], [checks[index] for index in rest]
            for verdict in self.acceptors.verdicts(some, theirs, ran=self.rank != self.roles.first):
                self.judged(verdict)
        for session, why in failed.items():
            self.failures.append(why)
            self.fail(session)

    def _states(
        self, windows: Sequence[PendingWindow], checks: Sequence[Check | None], run: list[int]
    ) -> tuple[dict[int, Tensor | None], dict[int, str], int]:
        """What comes of the windows of the indices `run`, by index; the sessions that failed, and why, and the tokens
        that were forwarded. The others go on as if those that failed had not been there."""
        failed: dict[int, str] = {}
        tokens = 0
        while run:
            tokens += sum(len(windows[index].window.tokens) for index in run)
            try:
                out = self.stage.forward(
                    [windows[i].window for i in run], [windows[i].hidden for i in run], [checks[i] for i in run]
                )
                return dict(zip(run, out, strict=True)), failed, tokens
            except SequenceError as error:
                session = self.stage.session_of(error.sequence)
                failed[session] = f"session {session} failed on rank {self.rank}: {error}"
                run = [index for index in run if windows[index].window.session != session]
        return {}, failed, tokens

    def fail(self, session: int) -> None:
        """A session can't go on here: let the last run end it."""
        self._failed.add(session)
        if self.acceptors is None:
            self.send_on(Failed(session))
            return
        verdict = self.acceptors.finish(session, FinishReason.failed, None)
        if verdict is not None:
            self.judged(verdict)

    def send_on(self, message: Message) -> None:
        """To the next run of layers."""
        self.mailbox.put(self._ring, self.roles.next_of(self.rank), message)

    def has_room(self, session: int) -> bool:
        """Whether the next run of layers takes what comes of a session before long."""
        return self.mailbox.has_room(self._ring, self.roles.next_of(self.rank), session)

    def judged(self, verdict: Verdict) -> None:
        """On the last run: back to the first."""
        self.mailbox.put(self._ring, self.roles.first, verdict)

    def open(self, opened: SessionStart) -> None:
        """A session begins: here, and behind."""
        self.stage.open(opened.session)
        if self.acceptors is not None:
            self.acceptors.open(opened)
        else:
            self.send_on(opened)
        if opened.forwarded > 0:
            tokens = opened.tokens[: opened.forwarded]
            if not self._keeper.take_up(
                self.stage.decoder, self.stage.sequence_of(opened.session), opened.session, tokens
            ):
                self.fail(opened.session)

    def end(self, cancel: SessionEnd) -> None:
        """A session ends, behind everything that was sent for it: here, and behind."""
        if self.acceptors is None:
            self.send_on(cancel)
        else:
            length = None if cancel.length < 0 else cancel.length
            verdict = self.acceptors.finish(cancel.session, cancel.reason, length)
            if verdict is not None:
                self.judged(verdict)
            if cancel.length < 0:
                self.acceptors.close(cancel.session)
        # With a length it is a stop that the first run waits to hear of; its own cancel comes after that.
        if cancel.length < 0:
            if cancel.parked:
                self._park(cancel.session, cancel.parked)
            self._failed.discard(cancel.session)
            self.stage.close(cancel.session)

    def _park(self, session: int, tokens: Sequence[int]) -> None:
        """Write the KV of a session's first tokens to a file; those behind are at it meanwhile."""
        self.mailbox.send()
        sequence = self.stage.sequence_of(session)
        done = session not in self._failed and self._keeper.park(self.stage.decoder, sequence, session, tokens)
        self._parked[session] = done
        if self.rank == self.roles.first:
            self._kept(session, 0)

    def _kept(self, session: int, ranks: int) -> None:
        """So many verifiers before this one have parked a session; say so behind."""
        ranks += self._parked.pop(session)
        if self.acceptors is None:
            self.send_on(ParkAck(session, ranks))
        elif self.rank != self.roles.first:
            self.mailbox.put(self._ring, self.roles.first, ParkAck(session, ranks))
        else:
            self.kept(ParkAck(session, ranks))

    def kept(self, kept: ParkAck) -> None:
        """On the first run: all verifiers have been asked to park a session."""
        raise NotImplementedError

    def _put(self, message: Message) -> None:
        session = message.window.session if isinstance(message, HiddenStates) else getattr(message, "session", -1)
        self._inbox.setdefault(session, deque()).append(message)

    def _see(self, message: Message) -> None:
        match message:
            case SessionStart():
                self.open(message)
            case SessionEnd():
                self.end(message)
            case Failed():
                self.fail(message.session)
            case ParkAck(session, ranks):
                self._kept(session, ranks)

    def stop(self) -> None:
        """What the acceptors counted is part of the report."""
        if self.acceptors is not None:
            self.counters.add(self.acceptors.counters)
