"""No actor stops receiving while it waits for credit to send.

The actors and mailboxes are those of a run; the network is a list for each route, whose credits a test may withhold,
and models are functions of the text.
"""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from paceline.pipeline.speculation.acceptor import Check
from paceline.pipeline.speculation.drafter import Branch, Rollback
from paceline.pipeline.speculation.window import Coupling, Window
from paceline.runtime.actor import Done
from paceline.runtime.language.actor import LanguageActor
from paceline.runtime.language.drafter import DrafterActor
from paceline.runtime.language.leader import LeaderActor
from paceline.runtime.language.messages import Drafted, unpack
from paceline.runtime.language.verifier import VerifierActor
from paceline.stages.couplings import Ruling
from paceline.stages.item import Item, Key
from paceline.stages.lm.drafter import DraftStep
from paceline.stages.lm.verify_stage import Case
from tests.runtime.language.cluster import language, spec_of

Way = tuple[int, int, int]
"""Edge, source and target"""
DEPTH, TOKENS = 3, 12


def target(text: Sequence[int]) -> int:
    return (sum(text) * 7 + len(text)) % 5


class Network:
    """Items on their way. `credits` is how many of a session a route holds until they are taken; 0 withholds them."""

    def __init__(self) -> None:
        self.credits = 1
        self.sent: defaultdict[Way, deque[Item]] = defaultdict(deque)
        self.here: defaultdict[Way, deque[Item]] = defaultdict(deque)

    def held(self, way: Way, session: int) -> int:
        return sum(item.key.session == session for item in (*self.sent[way], *self.here[way]))

    def deliver(self, way: Way) -> None:
        self.here[way].append(self.sent[way].popleft())


class Port:
    """What a mailbox and an actor need of an endpoint."""

    def __init__(self, network: Network, rank: int) -> None:
        self.network, self.rank = network, rank
        self.lost: set[int] = set()

    def edge_bytes(self, edge: int) -> int:
        return 1 << 20

    def can_send(self, edge: int, to: int, session: int, items: int, nbytes: int) -> bool:
        return self.network.held((edge, self.rank, to), session) + items <= self.network.credits

    def send(self, to: int, item: Item) -> None:
        assert self.can_send(item.key.edge, to, item.key.session, 1, item.nbytes)
        self.network.sent[item.key.edge, self.rank, to].append(item)

    def arrived(self, edge: int, source: int) -> list[Key]:
        return [item.key for item in self.network.here[edge, source, self.rank]]

    def take(self, key: Key) -> Item:
        for (_, _, to), items in self.network.here.items():
            if to == self.rank and items and items[0].key == key:
                return items.popleft()
        raise AssertionError(f"{key} has not arrived")


class Drafts:
    """Drafts the target's token two times of three."""

    def open(self, session: int, seed: int) -> None: ...
    def close(self, session: int) -> None: ...
    def settle(self, session: int, length: int, rollback: Rollback | None) -> None: ...

    def step(self, steps: Sequence[tuple[Branch, list[int]]], others: int) -> list[DraftStep]:
        return [DraftStep(branch, target(text) + (sum(text) % 3 == 0)) for branch, text in steps]

    def evidence(self, window: Window) -> tuple[Tensor | None, Tensor | None]:
        return None, None


class Passes:
    """Judges by the text, as a verify stage does by the rows."""

    decoder = None

    def __init__(self, last: bool) -> None:
        self.last, self.sessions = last, list[int]()

    def open(self, session: int) -> None:
        self.sessions.append(session)

    def close(self, session: int) -> None:
        self.sessions.remove(session)

    def sequence_of(self, session: int) -> int:
        return session

    def rolled_back(self, session: int, to: int, window: Window) -> None: ...

    def forward(
        self, windows: Sequence[Window], hidden: Sequence[Tensor | None], checks: Sequence[Check | None]
    ) -> list[Tensor | None]:
        return [None if self.last else torch.zeros(len(window.tokens), 1) for window in windows]

    def rule(self, cases: Sequence[Case]) -> list[Ruling]:
        return [self._ruling(case) for case in cases]

    def _ruling(self, case: Case) -> Ruling:
        at = case.check.position
        for index, token in enumerate(case.check.drafted):
            right = target(case.tokens[: at + index])
            if token != right:
                return Ruling(index, right, None)
        accepted = len(case.check.drafted)
        return Ruling(accepted, None, target(case.tokens[: at + accepted]) if case.check.extra else None)


class Group:
    """A drafter and two verifiers with a session for each prompt, whose events come one at a time."""

    def __init__(self, prompts: Sequence[Sequence[int]], coupling: str = "gumbel") -> None:
        keys = {"depth": DEPTH, "window": 2, "hedge": 0, "patience_ms": 1e6, "coupling": coupling}
        topology = language(
            (Path("none"), Path("none")), 2, **{f"speculation__{key}": value for key, value in keys.items()}
        )  # type: ignore[arg-type]
        spec = spec_of(topology, [""] * len(prompts), TOKENS, temperature=0.0 if coupling == "greedy" else 1.0)
        self.network = Network()
        ports = [Port(self.network, rank) for rank in range(3)]
        arguments = [(spec, rank, ports[rank], lambda: None) for rank in range(3)]
        self.leader = LeaderActor(*arguments[1], "verify", Passes(False), (), prompts, None, None)  # type: ignore[arg-type]
        self.actors: list[LanguageActor] = [
            DrafterActor(*arguments[0], "draft", Drafts(), frozenset()),  # type: ignore[arg-type]
            self.leader,
            VerifierActor(*arguments[2], "verify", Passes(True), ()),  # type: ignore[arg-type]
        ]

    def step(self, actor: LanguageActor) -> None:
        """An iteration of the worker."""
        actor.on_items()
        waits = [way for way, items in self.network.here.items() if items and way[2] == actor.rank]
        assert not waits, f"{actor.role} leaves what arrived by {waits}"
        work = actor.ready()
        if work is not None:
            actor.on_done(Done(work, 0.0, 0.0, work.compute()))
        actor.send()

    def event(self, source: random.Random) -> None:
        """Deliver the first item of a route, or let an actor go on."""
        ways = [way for way, items in self.network.sent.items() if items]
        chosen = source.choice([*self.actors, *ways])
        if isinstance(chosen, LanguageActor):
            self.step(chosen)
        else:
            self.network.deliver(chosen)

    def finish(self, source: random.Random) -> None:
        for _ in range(20_000):
            if self.leader.finished:
                for actor in self.actors:
                    actor.on_end()
            if all(actor.finished for actor in self.actors):
                return
            self.event(source)
        raise AssertionError("the actors don't come to an end")

    def texts(self) -> list[list[int]]:
        return [text.token_ids for text in sorted(self.leader._texts, key=lambda text: text.id)]

    def drafted(self) -> list[Window]:
        """Windows that the drafter made and the leader has not taken, from the oldest on."""
        (way,) = {way for way in (*self.network.sent, *self.network.here) if way[1:] == (0, 1)} or {(0, 0, 1)}
        items = [*self.network.here[way], *self.network.sent[way]]
        messages = [message for item in items for message in unpack(item.tensors)]
        waiting = [records for key, records in self.actors[0].mailbox._waiting.items() if key[1] == 1]
        for records in waiting:
            for record in records:
                messages += unpack(
                    (torch.frombuffer(bytearray(_framed(record.body)), dtype=torch.uint8), *record.tensors)
                )
        return [message.window for message in messages if isinstance(message, Drafted)]


def _framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "little") + body


def plain(prompt: Sequence[int]) -> list[int]:
    text = list(prompt)
    while len(text) < len(prompt) + TOKENS:
        text.append(target(text))
    return text[len(prompt) :]


PROMPTS = ((1, 2), (3,), (4, 4, 1))


@pytest.mark.parametrize("seed", range(12))
def test_with_one_credit_each_and_in_every_order_texts_are_those_of_plain_decoding(seed: int) -> None:
    group = Group(PROMPTS, str(list(Coupling)[seed % 2]))
    group.finish(random.Random(seed))
    assert group.texts() == [plain(prompt) for prompt in PROMPTS]
    counters = group.actors[2].counters
    group.actors[2].stop()
    assert counters.from_drafts > 0 and counters.rejections > 0


@pytest.mark.parametrize("seed", range(12))
def test_actors_without_credit_take_all_that_arrives(seed: int) -> None:
    """From some moment on nobody gets credit. All that arrives is taken, the actors come to rest with bounded queues,
    and with credit they end as if nothing had been."""
    source = random.Random(seed)
    group = Group(PROMPTS)
    for _ in range(source.randrange(5, 150)):
        group.event(source)
    group.network.credits = 0
    for way in list(group.network.sent):
        while group.network.sent[way]:
            group.network.deliver(way)
    for _ in range(200):
        group.step(source.choice(group.actors))
    assert not any(group.network.here.values())
    windows = group.drafted()
    for session in range(len(PROMPTS)):
        of_session = [window for window in windows if window.session == session]
        newest = max((window.epoch for window in of_session), default=0)
        assert sum(window.epoch == newest for window in of_session) <= DEPTH
        assert len(of_session) < 2 * DEPTH, "discarded ones add up"
    # At the leader and behind it: windows with those that a rejection discarded, and the messages of start and end.
    for actor in group.actors[1:]:
        assert all(len(records) <= 2 * DEPTH + 2 for key, records in actor.mailbox._waiting.items() if key[1] != 0)
    group.network.credits = 1
    group.finish(source)
    assert group.texts() == [plain(prompt) for prompt in PROMPTS]
