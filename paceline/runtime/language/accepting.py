"""The acceptors of the last verifier: windows whose pass has run, decided for all sessions in one go."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from torch import Tensor

from paceline.pipeline.speculation.acceptor import Acceptor, Check
from paceline.pipeline.speculation.counters import Counters
from paceline.pipeline.speculation.window import Coupling, FinishReason, Verdict, Window
from paceline.runtime.language.messages import SessionStart
from paceline.stages.lm.verify_stage import Case, VerifyStage

__all__ = ["Acceptors", "PendingWindow"]


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
