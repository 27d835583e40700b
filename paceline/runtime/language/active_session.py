"""A session at the leader: its scheduler, its text, what it was and when."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path

from paceline.pipeline.speculation.verify_scheduler import VerifyScheduler
from paceline.pipeline.speculation.window import FinishReason, Verdict, ending
from paceline.runtime.result import TextResult
from paceline.runtime.timeline import now
from paceline.stages.lm.text_stream import TextStream
from paceline.stages.lm.tokenizer import Tokenizer

__all__ = ["ActiveSession", "TextLog"]


class TextLog:
    """Committed text as it comes, a JSON array a line: session, text, where it came from. Somebody may be reading."""

    def __init__(self, path: Path | None) -> None:
        self._file = None if path is None else path.open("a", encoding="utf-8", buffering=1)

    def write(self, session: int, text: str, origin: str) -> None:
        """Add a piece of text."""
        if self._file is not None and text:
            self._file.write(json.dumps([session, text, origin]) + "\n")

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


class ActiveSession:
    """One session while it runs."""

    def __init__(
        self, session: int, prompt: Sequence[int], limit: int, seed: int, scheduler: VerifyScheduler,
        tokenizer: Tokenizer | None, stop: Sequence[str], log: TextLog, eos: Collection[int] = (), cut: bool = False,
    ) -> None:  # fmt: skip
        """`cut` says that the prompt may end within a character, as that of a session that was parked may."""
        self.session, self.seed, self.limit, self.scheduler = session, seed, limit, scheduler
        self._eos = frozenset(eos)
        self.tokens = list(prompt)
        self.prompt_tokens = len(prompt)
        self.origins: list[str] = []
        """Where each new token came from: a draft, a refill in place of one or behind the last, or a plain pass"""
        self.ending: tuple[FinishReason, int] | None = None
        """Why and at which length it was ended from here; nothing more is forwarded until the acceptor has heard it."""
        self._stream = None if tokenizer is None else TextStream(tokenizer, stop, prompt, cut)
        self._log = log
        self._text: list[str] = []
        self._started_s = now()
        self._first_s = self._finished_s = 0.0

    def commit(self, verdict: Verdict) -> tuple[FinishReason, int] | None:
        """Take the tokens of a verdict. Where the session ends with one of them: why, and at which length."""
        if verdict.tokens and not self._first_s:
            self._first_s = now()
        drafted = verdict.judged > 0 or verdict.drafted > 0
        for index, token in enumerate(verdict.tokens):
            origin = "draft" if index < verdict.drafted else "refill" if drafted else "plain"
            self.tokens.append(token)
            self.origins.append(origin)
            if self._stream is not None:
                self._show(self._stream.push(token), origin)
            reason = self._reason(token)
            if reason is not None:
                return reason, len(self.tokens)
        return None

    def finish(self, reason: FinishReason, length: int, parked: bool = False) -> FinishReason:
        """The session is over at this length; returns the reason, which is a stop string where the last of the text
        completes one. A session that is `parked` keeps an incomplete last character for the run that takes it up."""
        del self.tokens[length:], self.origins[max(0, length - self.prompt_tokens) :]
        if self._stream is not None:
            cut = parked and reason is FinishReason.length
            self._show(self._stream.finish(cut), self.origins[-1] if self.origins else "plain")
            if reason is FinishReason.length and self._stream.stop is not None:
                reason = FinishReason.stop
        self._finished_s = now()
        return reason

    def _reason(self, token: int) -> FinishReason | None:
        stopped = self._stream is not None and self._stream.stop is not None
        return ending(token, len(self.tokens), self.limit, self._eos, stopped)

    def _show(self, text: str, origin: str) -> None:
        self._text.append(text)
        self._log.write(self.session, text, origin)

    def result(self, started_s: float, reason: FinishReason) -> TextResult:
        """What came out; times count from `started_s`."""
        return TextResult(
            id=self.session, text="".join(self._text), token_ids=self.tokens[self.prompt_tokens :],
            finish_reason=reason.value, prompt_tokens=self.prompt_tokens, started_s=self._started_s - started_s,
            first_token_s=(self._first_s or self._finished_s) - started_s, finished_s=self._finished_s - started_s,
            drafted=self.origins.count("draft"), refilled=self.origins.count("refill"),
        )  # fmt: skip
