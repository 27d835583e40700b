"""Proof that a topology can't deadlock, or the cycle of waits that stops it.

Why one execution decides for every order and every timing: the units of a stream run in order; each item is taken by
one stream, and each credit (of an edge and a session) is used by one stream. So no unit can take a token that another
one waits for: a unit that may run stays so until it does. Such a net is persistent, and in a persistent net all maximal
executions consist of the same units (Landweber & Robertson, Properties of conflict-free and persistent Petri nets, JACM
1978); without credits that is the determinism of Kahn's process networks (1974), and with single producers and
consumers the net is a marked graph, live if and only if every cycle carries a token (Commoner, Holt, Even & Pnueli,
Marked directed graphs, JCSS 1971). Ranks add nothing to it: a rank picks only units that may run and never waits inside
one. Delays, placement and dispatch order are thus of no consequence, and neither is the number of sessions, which share
no token.

So a proof needs one session, and one period of it, and `reduced.py` says which smaller topologies stand for a large
one. The game is played without an end until its state, seen relative to the oldest frame, repeats at a time when the
prompt is not in reach of a pass; from there on it repeats for ever. A session may begin at any slot boundary and end at
any frame, so it is then started at every slot boundary of a period and ended at every frame of one.

Skipped steps (`fewer_steps`) change the net with every decision; there the game is played to its end under each
constant decision and under random ones, which is a test and not a proof.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from paceline.pipeline.context import Context, slot_of
from paceline.pipeline.program import ModelShape, Unit
from paceline.pipeline.reduced import is_live_chain, with_few_credits, with_short_context, with_short_prompt
from paceline.pipeline.strict_model import format_size
from paceline.pipeline.token_game import TokenGame
from paceline.pipeline.topology import FrameTopology, LatePolicy

__all__ = ["Deadlock", "Limits", "Verdict", "Wait", "check_liveness", "explore", "proof_of"]

_RANDOM_DECISIONS = 8
_MOST_UNITS = 200_000
"""Units that the search for a fix plays: a few seconds of them."""


@dataclass(frozen=True, slots=True)
class Wait:
    """What the next unit of a stage waits for: an item from, or a credit of, stage `on`."""

    stage: str
    session: int
    frame: int
    what: Literal["item", "credit"]
    edge: int
    on: str
    text: str
    """Such as `kv from step1 level 1 layer 0`."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of an edge that are large enough."""

    inflight: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Deadlock:
    """A cycle of waits, or, where `cycle` is not closed, a chain that ends at a stage with nothing left to do."""

    cycle: tuple[Wait, ...]
    closed: bool
    fix: dict[int, Limits]
    """By edge: the smallest limits that free it (see `_fix`). Empty where no limit does."""
    topology: FrameTopology

    def __str__(self) -> str:
        first = self.cycle[0]
        parts = [f"stage {first.stage} (session {first.session}, frame {first.frame}) waits for {first.text}"]
        parts += [f"{wait.stage} (frame {wait.frame}) waits for {wait.text}" for wait in self.cycle[1:]]
        if not self.closed:
            parts.append(f"{self.cycle[-1].on} has nothing left to do")
        return f"deadlock: {'; '.join(parts)}. {self.advice}"

    @property
    def advice(self) -> str:
        """What to change."""
        if not self.fix:
            return "No limit frees it: the stages wait for each other's items. Check edges and steps."
        changes = []
        for index, limits in self.fix.items():
            edge = self.topology.edges[index]
            if limits.inflight > edge.inflight:
                changes.append(f"edges.{index}.inflight={limits.inflight}")
            if limits.bytes > edge.bytes:
                changes.append(f"edges.{index}.bytes={limits.bytes}")
        return f"Fix: {' '.join(f'--set {change}' for change in changes)}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a play went. `repeats`: its state came again, so it goes on for ever; else it was played to its end."""

    live: bool
    repeats: bool
    game: TokenGame
    fired: int
    """Units that ran, in all games that were played for it"""


def check_liveness(topology: FrameTopology, shape: ModelShape) -> Deadlock | None:
    """None where no run of the topology can deadlock (see the module for what that rests on), else how it does."""
    if is_live_chain(topology):
        return None
    whole, topology = topology, with_short_prompt(with_short_context(topology))
    decisions: list[dict[int, int]] = [{}]
    if topology.on_late is LatePolicy.fewer_steps:
        decisions += _decisions(topology)
    for first_steps in decisions:
        if explore(with_few_credits(topology), shape, first_steps).live:
            continue
        if not explore(topology, shape, first_steps).live:
            # Once more with the whole prompt, which the frames that are named count.
            behind = whole.context.prompt - topology.context.prompt
            named = explore(whole, shape, {frame + behind: step for frame, step in first_steps.items()})
            waits, closed = _cycle(named.game)
            return Deadlock(waits, closed, _fix(topology, shape, first_steps), whole)
    return None


def proof_of(topology: FrameTopology) -> str:
    """What `check_liveness` has shown of a topology that it found live."""
    if is_live_chain(topology):
        return "marked graph: a chain in which nothing flows back, for any number of items"
    shown = (
        "marked graph: played without an end until its state repeats, and from every slot boundary of that period to "
        "an end at every frame of one"
    )
    if topology.on_late is LatePolicy.fewer_steps:
        shown += "; runs that skip steps were played under constant and random decisions, which is a test, not a proof"
    return shown


def _reach(topology: FrameTopology) -> int:
    """How many frames around its own a pass depends on, at most."""
    near = max(topology.context.window, topology.steps if topology.context.recall else 0)
    return near + topology.context.sinks + topology.steps + 2


def _frames(topology: FrameTopology) -> int:
    buffered = max((edge.inflight for edge in topology.edges if edge.carries == "item"), default=1)
    stages = len(topology.stages)
    # Room for the start, for the ends of the chain to drift apart as far as credits let them, and for a few
    # repetitions.
    return 4 * _reach(topology) + min(buffered, 64) * stages + 16


def explore(topology: FrameTopology, shape: ModelShape, first_steps: Mapping[int, int] | None = None) -> Verdict:
    """Play until nothing can run or the state repeats, and then sessions that start at each slot boundary of a period
    and end at each frame of one. With decisions, play one session to its end."""
    prompt = topology.prompt_frames
    if first_steps:
        return _to_the_end(TokenGame.start(topology, shape, prompt + _frames(topology), first_steps), 0)
    game = TokenGame.start(topology, shape)
    settled, limit = prompt + _reach(topology), prompt + _frames(topology)
    seen: dict[object, int] = {}
    while True:
        waiting = game.waiting()
        # A stage that nothing bounds, as it is not connected, must not run for ever beside others that wait.
        enabled = [stage for stage in game.enabled() if waiting[stage].frame < limit]
        if not enabled:
            return Verdict(all(unit.frame >= limit for unit in waiting.values()), False, game, game.fired)
        for stage in enabled:
            game.fire(stage)
        base, top, state = game.state()
        if base < settled or top + _reach(topology) >= limit:
            continue
        if state in seen:
            return _parts_of_a_session(topology, shape, game, seen[state], base)
        seen[state] = base


def _parts_of_a_session(topology: FrameTopology, shape: ModelShape, whole: TokenGame, first: int, last: int) -> Verdict:
    """Sessions that start at each slot boundary between two frames, and end some frames later, at one after another."""
    mode, steps = topology.context.mode, topology.steps
    start, fired = slot_of(mode, steps, first, 0), whole.fired
    for number in range(slot_of(mode, steps, last, 0) - start):
        end = first + number // slot_of(mode, steps, 1, 0) + steps + 2 + number % (last - first)
        found = _to_the_end(TokenGame.start(topology, shape, end, slot=start + number), fired)
        fired = found.fired
        if not found.live:
            return found
    return Verdict(True, True, whole, fired)


def _to_the_end(game: TokenGame, fired: int) -> Verdict:
    """Play a session to its end; `fired` units ran before."""
    while not game.done:
        enabled = game.enabled()
        if not enabled:
            return Verdict(False, False, game, fired + game.fired)
        for stage in enabled:
            game.fire(stage)
    return Verdict(True, False, game, fired + game.fired)


def _decisions(topology: FrameTopology) -> list[dict[int, int]]:
    """Every constant decision, and random ones, as far as a context allows them."""
    spec, steps = topology.context, topology.steps
    end = spec.prompt + _frames(topology)
    found: list[dict[int, int]] = []
    source = random.Random(0)
    for number in range(1, steps + _RANDOM_DECISIONS):
        context = Context.of(spec, steps, spec.prompt, end)
        for frame in range(spec.prompt, end):
            wish = number if number < steps else source.choice([0, source.randrange(steps)])
            context.begin(frame, max(wish, context.earliest_step(frame)))
        found.append(context.first_steps)
    return found


# -- naming ------------------------------------------------------------------------------------------------------------


def _cycle(game: TokenGame) -> tuple[tuple[Wait, ...], bool]:
    """Follow the waits of a stuck game to a cycle."""
    waiting = game.waiting()
    here = min(waiting, key=lambda stage: waiting[stage].priority)
    trail: dict[str, Wait] = {}
    while here not in trail:
        if here not in waiting:
            return tuple(trail.values()), False
        trail[here] = _wait(game, waiting[here])
        here = trail[here].on
    stages = list(trail)
    return tuple(trail[stage] for stage in stages[stages.index(here) :]), True


def _wait(game: TokenGame, unit: Unit) -> Wait:
    edges = game.topology.edges
    key = game.tokens.absent(unit)
    if key is not None:
        source = edges[key.edge].source
        text = f"frame {key.position} from {source}"
        if edges[key.edge].carries == "kv":
            level, layer = divmod(key.part, game.layers)
            text = f"kv from {source} of frame {key.position} level {level} layer {layer}"
        elif edges[key.edge].carries == "latent":
            text = f"the finished latent of frame {key.position} from {source}"
        return Wait(unit.stage, unit.session, unit.frame, "item", key.edge, source, text)
    give = game.tokens.refused(unit)
    if give is None:
        raise RuntimeError(f"stage {unit.stage} is said to be stuck, but its next unit may run")
    edge = edges[give.edge]
    limit = f"inflight {edge.inflight}"
    if give.nbytes + game.tokens.ledgers[give.edge].inflight(unit.session)[1] > edge.bytes:
        limit = f"bytes {format_size(edge.bytes)}, an item has {format_size(give.nbytes)}"
    text = f"a credit on edge {give.edge} to {edge.target} ({limit})"
    return Wait(unit.stage, unit.session, unit.frame, "credit", give.edge, edge.target, text)


# -- fixing ------------------------------------------------------------------------------------------------------------


def _with_limits(topology: FrameTopology, limits: dict[int, Limits]) -> FrameTopology:
    edges = list(topology.edges)
    for index, limit in limits.items():
        edges[index] = edges[index].model_copy(update={"inflight": limit.inflight, "bytes": limit.bytes})
    return topology.model_copy(update={"edges": tuple(edges)})


def _fix(topology: FrameTopology, shape: ModelShape, first_steps: dict[int, int]) -> dict[int, Limits]:
    """Raise the limits on the cycle, twofold each time, until it runs; then lower each again as far as it still does.
    More credit never stops a persistent net, so the search may bisect. It ends after `_MOST_UNITS` units: where a
    topology is so large, the limits are large enough and may not be the smallest."""
    limits: dict[int, Limits] = {}
    played = 0
    while True:
        verdict = explore(_with_limits(topology, limits), shape, first_steps)
        played += verdict.fired
        if verdict.live:
            break
        game = verdict.game
        refused = [wait for wait in _cycle(game)[0] if wait.what == "credit"]
        if not refused:
            return {}
        for wait in refused:
            edge = game.topology.edges[wait.edge]
            unit = game.waiting()[wait.stage]
            items, nbytes = game.tokens.ledgers[wait.edge].inflight(unit.session)
            for give in unit.gives:
                if give.edge == wait.edge:
                    items, nbytes = items + 1, nbytes + give.nbytes
            inflight = edge.inflight if items <= edge.inflight else max(items, 2 * edge.inflight)
            size = edge.bytes if nbytes <= edge.bytes else max(nbytes, 2 * edge.bytes)
            limits[wait.edge] = Limits(inflight, size)
    for index in list(limits):
        for field in ("inflight", "bytes"):
            low, high = getattr(topology.edges[index], field), getattr(limits[index], field)
            # A limit in bytes stands for the items that it holds.
            step = verdict.game.item_sizes.get(index, 0) or 1 if field == "bytes" else 1
            fewest, most = low // step, high // step
            while fewest < most and played < _MOST_UNITS:
                middle = (fewest + most) // 2
                trial = {**limits, index: _replaced(limits[index], field, max(low, middle * step))}
                tried = explore(_with_limits(topology, trial), shape, first_steps)
                played += tried.fired
                if tried.live:
                    most = middle
                else:
                    fewest = middle + 1
            limits[index] = _replaced(limits[index], field, max(low, most * step))
    return {
        index: limit
        for index, limit in limits.items()
        if (limit.inflight, limit.bytes) != (topology.edges[index].inflight, topology.edges[index].bytes)
    }


def _replaced(limits: Limits, field: str, value: int) -> Limits:
    return Limits(value, limits.bytes) if field == "inflight" else Limits(limits.inflight, value)
