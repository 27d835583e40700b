"""Why and where a session ends: one rule for the acceptor, the text at the leader and the serial reference.

The rule looks at one committed token at a time, in order, so the end does not depend on how many tokens a verdict
brings. Where several reasons hold for the same token, the order is: end of text, stop string, length.
"""

from __future__ import annotations

from collections.abc import Collection

from paceline.pipeline.speculation.window import FinishReason

__all__ = ["ending"]


def ending(token: int, length: int, limit: int, eos: Collection[int], stopped: bool = False) -> FinishReason | None:
    """Why a session ends with `token`, which makes it `length` tokens long, prompt included; None where it goes on.

    `limit` is its maximum length, `eos` are the tokens that end a text, and `stopped` says that a stop string is
    complete with this token.
    """
    if token in eos:
        return FinishReason.eos
    if stopped:
        return FinishReason.stop
    return FinishReason.length if length >= limit else None
