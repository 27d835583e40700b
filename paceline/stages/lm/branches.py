"""The drafter's sequences: one for the main chain of each session, and one for each hedge that branches off it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paceline.pipeline.speculation.drafter import Branch

if TYPE_CHECKING:
    from paceline.stages.lm.decoder import Decoder

__all__ = ["Branches", "common_prefix"]


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first tokens two lists share. Halving, so that a long text costs little."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while low + 1 < high:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low


@dataclass(slots=True)
class _Chain:
    sequence: int
    base: int
    tokens: list[int]


class Branches:
    """Which positions of which branch the decoder has computed. A branch is asked for with all its tokens; what the
    decoder has of them is kept, the rest is forwarded: rolling back needs nothing else."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._chains: dict[int, dict[int, _Chain]] = {}

    def open(self, session: int) -> None:
        """A session without any positions."""
        self._chains[session] = {0: _Chain(self._decoder.open(), 0, [])}

    def close(self, session: int) -> None:
        """Free a session."""
        for chain in self._chains.pop(session).values():
            self._decoder.close(chain.sequence)

    def numbers(self, session: int) -> set[int]:
        """The branches of a session that the decoder holds."""
        return set(self._chains[session])

    def new_tokens(self, branch: Branch, tokens: list[int]) -> tuple[int, list[int]]:
        """The decoder's sequence for a branch that has `tokens`, and those of them to forward; at least the last."""
        chains = self._chains[branch.session]
        chain = chains.get(branch.number)
        if chain is None:
            main = chains[0]
            # The main chain's newest tokens may be part of the very forward that this branch will be in.
            held = self._decoder.length(main.sequence)
            shared = min(common_prefix(main.tokens, tokens), len(tokens) - 1, held)
            chain = _Chain(self._decoder.fork(main.sequence, shared), branch.base, tokens[:shared])
            chains[branch.number] = chain
        have = min(common_prefix(chain.tokens, tokens), len(tokens) - 1)
        if have < len(chain.tokens):
            self._decoder.truncate(chain.sequence, have)
        chain.tokens = tokens
        return chain.sequence, tokens[have:]

    def settle(self, session: int, length: int, over: bool, promoted: int | None) -> None:
        """After a verdict: `length` tokens are committed. Where the drafter rolled back (`over`), all branches but the
        promoted one are gone; it becomes the main chain."""
        chains = self._chains[session]
        if promoted is not None and promoted in chains:
            self._decoder.close(chains[0].sequence)
            chains[0] = chains.pop(promoted)
        for number in [n for n, chain in chains.items() if n and (over or chain.base < length)]:
            self._decoder.close(chains.pop(number).sequence)
