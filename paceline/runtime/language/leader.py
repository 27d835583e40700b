"""The leader, which is the first verifier. Sessions join here, wait for windows or are decoded plainly, and leave with
their text."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import msgspec

from paceline.pipeline.speculation.verify_scheduler import VerifyScheduler
from paceline.pipeline.speculation.window import FinishReason, Verdict
from paceline.runtime.actor import Done, Work
from paceline.runtime.endpoint import Endpoint
from paceline.runtime.language.active_session import ActiveSession, TextLog
from paceline.runtime.language.drafter_client import DrafterClient
from paceline.runtime.language.messages import Drafted, ParkAck, SessionEnd, SessionStart, StatsReport
from paceline.runtime.language.parked import ParkedSession
from paceline.runtime.language.verifier import PendingWindow, VerifierActor
from paceline.runtime.result import LanguageResult, RankReport, TextResult
from paceline.runtime.spec import GenerateSpec
from paceline.runtime.timeline import now
from paceline.stages.lm.tokenizer import Tokenizer
from paceline.stages.lm.verify_stage import VerifyStage

__all__ = ["LeaderActor"]


class LeaderActor(VerifierActor):
    """The first layer range, and with it the schedulers of all sessions."""

    def __init__(
        self,
        spec: GenerateSpec,
        rank: int,
        endpoint: Endpoint,
        notify: Callable[[], None],
        name: str,
        stage: VerifyStage,
        eos: Collection[int],
        prompts: Sequence[Sequence[int]],
        tokenizer: Tokenizer | None,
        log: Path | None,
        drafts_to: int | None = None,
    ) -> None:
        """`drafts_to`: positions that the drafter takes; None where nothing bounds it."""
        super().__init__(spec, rank, endpoint, notify, name, stage, eos)
        self._queue = deque(enumerate(prompts))
        self._tokenizer, self._eos = tokenizer, eos
        self._log = TextLog(log)
        self._live: dict[int, ActiveSession] = {}
        self._evidence: dict[tuple[int, int, int], Drafted] = {}
        self._texts: list[TextResult] = []
        self._keeping: dict[int, ParkedSession] = {}
        """Sessions that are being parked."""
        self._written: list[int] = []
        runs = len(self.roles.verifiers)
        self._depth = runs if runs == 1 else runs + 1
        self._drafter = DrafterClient(spec, self.roles, endpoint, self.mailbox, drafts_to)
        self._started_s = self._ended_s = 0.0
        self.mailbox.listen(self.roles.windows, self.roles.drafter)
        if runs > 1:
            self.mailbox.listen(self._ring, self.roles.last)

    @property
    def sessions(self) -> list[int]:
        """The sessions that run now."""
        return list(self._live)

    def on_items(self) -> bool:
        """Take windows and verdicts, and admit sessions."""
        if self.busy:
            return False
        self._started_s = self._started_s or now()
        messages = self.mailbox.take()
        for _, _, message in messages:
            match message:
                case Drafted() if message.window.session in self._live and not self._drafter.lost:
                    self._offer(message)
                case StatsReport():
                    self._drafter.told(message, len(self._live))
                case Verdict():
                    self.judged(message)
                case ParkAck():
                    self.kept(message)
        joined = self._admit()
        if self._drafter.watch(len(self._live)):
            for live in self._live.values():
                self._drafter.notify(live.scheduler)
        return bool(messages or joined)

    def ready(self) -> Work | None:
        """Forward the windows that are next in their sessions."""
        if self.busy:
            return None
        windows = self._windows()
        if windows:
            return self.forward(windows)
        self._drafter.idle()
        if not self._live and not self._queue:
            self._ended_s = self._ended_s or now()
        return None

    def on_done(self, done: Done) -> None:
        """Pass on what came of the windows, and tell the controller what the pass cost."""
        super().on_done(done)
        windows, _ = done.work.context
        self._drafter.passed([w.window for w in windows], now() - done.start_s)

    @property
    def finished(self) -> bool:
        """Whether all sessions have left, and those that are parked are written."""
        return bool(self._ended_s) and not (self.busy or self._live or self._queue or self._keeping)

    def patience(self) -> float:
        """Until the first scheduler loses patience with its drafter."""
        waiting = [live.scheduler for live in self._live.values() if self._may_forward(live)]
        due = [when for scheduler in waiting if (when := scheduler.due()) is not None]
        return min((when - now() for when in due), default=math.inf)

    # -- sessions ------------------------------------------------------------------------------------------------------

    def _admit(self) -> bool:
        joined = False
        while self._queue and len(self._live) < self.topology.speculation.sessions:
            session, prompt = self._queue.popleft()
            options = self.spec.options(session)
            limit, seed = len(prompt) + options.max_tokens, self.spec.session_seed(session)
            spec = self.topology.speculation
            scheduler = VerifyScheduler(
                session, prompt, options.sampling.effective_coupling, depth=self._depth, policy=spec.policy,
                patience=spec.patience_ms / 1000, chunk=spec.chunk, drafter=self._drafter.state_at(len(prompt)),
                now=now(), forwarded=self.spec.held(session),
            )  # fmt: skip
            self._live[session] = ActiveSession(
                session, prompt, limit, seed, scheduler, self._tokenizer, options.stop, self._log, self._eos,
                self.spec.cut(session),
            )  # fmt: skip
            opened = SessionStart(session, limit, seed, tuple(prompt))
            self._drafter.opened(opened)
            self.open(msgspec.structs.replace(opened, forwarded=self.spec.held(session)))
            joined = True
        return joined

    def cancel(self, session: int) -> None:
        """End a session now, wherever its windows are; one that has not begun never does. Call it on this thread."""
        live = self._live.get(session)
        if live is not None and live.ending is None:
            self._stop(live, FinishReason.cancelled, len(live.tokens))
        for number, prompt in list(self._queue):
            if number == session:
                self._queue.remove((number, prompt))
                at = now() - (self._started_s or now())
                self._left(TextResult(number, "", [], FinishReason.cancelled.value, len(prompt), at, at, at))

    def fail(self, session: int) -> None:
        """A session failed here: it ends with what is committed."""
        live = self._live.get(session)
        if live is not None and live.ending is None:
            self._stop(live, FinishReason.failed, len(live.tokens))

    def _stop(self, live: ActiveSession, reason: FinishReason, length: int) -> None:
        live.ending = reason, length
        self.end(SessionEnd(live.session, reason, length))

    def judged(self, verdict: Verdict) -> None:
        """A verdict has come, from here or from the last run."""
        live = self._live.get(verdict.session)
        if live is None:
            return
        live.scheduler.settled(verdict, now())
        self._drafter.reached(live.scheduler, verdict.length)
        end = live.commit(verdict) if live.ending is None else None
        self._drafter.judged(verdict)
        self._forget(verdict.session, verdict.closed)
        if verdict.finish is not None:
            # The acceptor sees no text: a stop string may end the session at or before the token that ends it there.
            live.ending = live.ending or end
            self._leave(live, verdict)
        elif end is not None:
            self._stop(live, *end)

    def _leave(self, live: ActiveSession, verdict: Verdict) -> None:
        # A stop string ends the session where it was found, even if the acceptor came to another end meanwhile.
        reason, length = live.ending or (verdict.finish or FinishReason.cancelled, verdict.length)
        reason = live.finish(reason, length, self.spec.park is not None)
        self.counters.add(live.scheduler.counters)
        del self._live[live.session]
        self._forget(live.session, 1 << 62)
        parked: tuple[int, ...] = ()
        # Before its first token the KV of its prompt may not be there.
        if self.spec.park is not None and reason is not FinishReason.failed and live.origins:
            # The KV of the last token has not been computed.
            parked = tuple(live.tokens[:-1])
            ranks = len(self.roles.verifiers)
            self._keeping[live.session] = self._keeper.record(live.session, live.tokens, live.seed, reason.value, ranks)
        self.end(SessionEnd(live.session, parked=parked))
        self._left(live.result(self._started_s, reason))

    def kept(self, kept: ParkAck) -> None:
        """All verifiers have been asked to park a session. If all did, it can be taken up from now on."""
        session = self._keeping.pop(kept.session)
        if kept.ranks == session.ranks and self._keeper.complete(session):
            self._written.append(session.number)

    def _left(self, text: TextResult) -> None:
        self._texts.append(text)
        self.done = len(self._texts)
        self.notify()

    # -- windows -------------------------------------------------------------------------------------------------------

    def _offer(self, drafted: Drafted) -> None:
        window = drafted.window
        if drafted.chances is not None:
            self._evidence[window.session, window.epoch, window.start] = drafted
        self._live[window.session].scheduler.offer(window)

    def _may_forward(self, live: ActiveSession) -> bool:
        """Whether a session goes on, and what comes of its next window can be passed on before long."""
        return live.ending is None and (self.acceptors is not None or self.has_room(live.session))

    def _windows(self) -> list[PendingWindow]:
        windows = []
        for live in self._live.values():
            window = live.scheduler.next(now()) if self._may_forward(live) else None
            if window is not None:
                sent = self._evidence.pop((window.session, window.epoch, window.start), None)
                windows.append(
                    PendingWindow(window, None, *((sent.chances, sent.rows) if sent and window.drafted else ()))
                )
        return windows

    def _forget(self, session: int, closed: int) -> None:
        for key in [k for k in self._evidence if k[0] == session and k[1] <= closed]:
            del self._evidence[key]

    # -- the end -------------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Close the log of texts."""
        super().stop()
        self._log.close()

    def result(self, reports: Sequence[RankReport]) -> LanguageResult:
        """The generation, from the reports of its ranks."""
        warnings = self._drafter.warnings(self.counters.fallbacks, {report.rank for report in reports})
        warnings += [failure for report in reports for failure in report.failures]
        tuner = self._drafter.tuner
        tuner.end(self._ended_s)
        s = tuner.settings
        return LanguageResult(
            sessions=sorted(self._texts, key=lambda text: text.id),
            wall_s=self._ended_s - self._started_s,
            ranks=list(reports),
            settings={"window": s.window, "depth": s.depth, "hedge": s.hedge},
            predicted_speedup=tuner.predicted,
            measured_speedup=tuner.measured,
            warnings=warnings,
            parked=sorted(self._written),
        )
