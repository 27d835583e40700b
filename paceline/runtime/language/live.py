"""A session at the first verifier, where it lives: its front, its text, what it was and when."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from paceline.pipeline.speculation.front import Front
from paceline.pipeline.speculation.window import FinishReason, Verdict
from paceline.runtime.clock import now
from paceline.runtime.language.result import TextResult
from paceline.stages.lm.text_stream import TextStream
from paceline.stages.lm.tokenizer import Tokenizer

__all__ = ["Live", "TextLog"]


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


class Live:
    """One session while it runs."""

    def __init__(
        self, session: int, prompt: Sequence[int], limit: int, seed: int, front: Front, tokenizer: Tokenizer | None,
        stop: Sequence[str], log: TextLog,
    ) -> None:  # fmt: skip
        self.session, self.seed, self.limit, self.front = session, seed, limit, front
        self.tokens = list(prompt)
        self.prompt_tokens = len(prompt)
        self.origins: list[str] = []
        """Where each new token came from: a draft, a refill in place of one or behind the last, or a plain pass"""
        self.ending: tuple[FinishReason, int] | None = None
        """Why and at which length it was ended from here; nothing more is forwarded until the judge has heard it."""
        self._stream = None if tokenizer is None else TextStream(tokenizer, stop, prompt)
        self._log = log
        self._text: list[str] = []
        self._started_s = now()
        self._first_s = self._finished_s = 0.0

    def commit(self, verdict: Verdict) -> int | None:
        """Take the tokens of a verdict. Where a stop string is complete now: the length at which the session ends."""
        if verdict.tokens and not self._first_s:
            self._first_s = now()
        drafted = verdict.judged > 0 or verdict.drafted > 0
        for index, token in enumerate(verdict.tokens):
            origin = "draft" if index < verdict.drafted else "refill" if drafted else "plain"
            self.tokens.append(token)
            self.origins.append(origin)
            if self._stream is not None:
                self._show(self._stream.push(token), origin)
                if self._stream.stop is not None:
                    return self.prompt_tokens + self._stream.stop.tokens
        return None

    def finish(self, length: int) -> None:
        """The session is over at this length."""
        del self.tokens[length:], self.origins[max(0, length - self.prompt_tokens) :]
        if self._stream is not None:
            self._show(self._stream.finish(), self.origins[-1] if self.origins else "plain")
        self._finished_s = now()

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
