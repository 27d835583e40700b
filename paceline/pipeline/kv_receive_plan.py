"""What KV of other stages a denoise stage takes in, and in which order.

Every item that another stage gives is taken exactly once: with the first pass that reads it, ahead of that pass, or,
where the pass is skipped, in its place. The order is that of the making, because an edge hands over one item after
another and its writer waits for credit: a stage that took a later item first could wait for itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby

from paceline.pipeline.context import Context, Read, slot_of
from paceline.pipeline.topology import ContextMode, FrameTopology
from paceline.pipeline.unit import Key, ModelShape, Row, kv_part, kv_run

__all__ = ["KVReceivePlan"]


@dataclass(slots=True)
class KVReceivePlan:
    """The KV edges into one stage, for one session. Passes are asked for in their order, each once."""

    topology: FrameTopology
    shape: ModelShape
    stage: str
    session: int
    context: Context
    steps: tuple[int, ...] = field(init=False)
    edges: dict[int, int] = field(init=False, default_factory=dict)
    """By level: the edge that brings it"""
    runs: dict[int, int] = field(init=False, default_factory=dict)
    """By level: layers in one item of it"""
    held: set[tuple[int, int]] = field(init=False, default_factory=set)
    """(frame, level) that came, or will come for a pass already asked for"""
    deferred: list[Read] = field(init=False, default_factory=list)
    """KV that skipped passes would have read and that was not yet computed then"""
    end: int | None = field(init=False, default=None)
    """One past the last frame, once the session has ended: nothing comes of later ones"""

    _most_held: int = 64

    def __post_init__(self) -> None:
        self.steps = self.topology.stage_steps(self.stage)
        for index, edge in enumerate(self.topology.edges):
            if edge.carries == "kv" and edge.target == self.stage:
                for level in self.topology.stage_steps(edge.source):
                    self.edges[level] = index
                    self.runs[level] = kv_run(self.topology, self.shape, index, level)

    def skip(self, slot: int, row: Row) -> list[Key]:
        """What to take in place of a skipped pass: all that it would have read first, as far as it is computed by then.

        A late frame is computed in a later slot. To wait for it here could be to wait for a later pass of this stage,
        so the rest is left for the slot of its making."""
        self.deferred += self._first_reads(row)
        due = self._due(slot, row.step)
        return self._in_order(sorted([*due, *self._overtaken(due)], key=self._made))

    def take(self, slot: int, row: Row) -> tuple[list[Key], dict[int, list[Key]]]:
        """What to take ahead of a pass, in order, and, by first layer, with it.

        Only a stream of layers goes with the pass, and only where nothing else that the pass needs is made after it:
        else the pass waits for that while the writer of the stream waits for credit, and what the writer holds up may
        be the very thing. Taken like this, two credits an edge are enough for every partition of the steps where the
        sinks are prompt frames and no frame skips steps; elsewhere the liveness check says whether more are needed.
        """
        fresh, due = self._first_reads(row), self._due(slot, row.step)
        due += self._overtaken([*fresh, *due])
        reads = sorted([*fresh, *due], key=self._made)
        ahead: list[Read] = []
        beside: dict[int, list[Key]] = {}
        for index, read in enumerate(reads):
            whole = any(self.runs[other.level] == self.shape.layers or other in due for other in reads[index:])
            shared = any(self.edges[other.level] == self.edges[read.level] for other in reads[index + 1 :])
            if whole or shared:
                ahead.append(read)
                continue
            for layer, key in self._items(read):
                beside.setdefault(layer, []).append(key)
        return self._in_order(ahead), beside

    def rest(self, end: int) -> list[Key]:
        """What is still to be taken after the last pass of a session of frames before `end`: what was deferred, and KV
        that only passes of later frames would have read."""
        left, self.deferred = self.deferred, []
        oldest = max(end - self._near, self.context.prompt)
        left += [
            read
            for read in (Read(frame, level) for frame in range(oldest, end) for level in self.edges)
            if read.level >= self.context.first_step(read.frame)
            and self.context.needed(read.frame, read.level, self.steps)
            and (read.frame, read.level) not in self.held
        ]
        # Slot by slot: a level of a later slot is made when the one before has been given to its end.
        slots = groupby(sorted(left, key=self._made), key=lambda read: self._made(read)[0])
        return [key for _, reads in slots for key in self._in_order(list(reads))]

    # -- what ----------------------------------------------------------------------------------------------------------

    @property
    def _near(self) -> int:
        """Frames after its own within which KV is first read: older KV came with the frames next to it, or with the
        first that could recall it (`Context.fresh`)."""
        return self.context.steps + 2 + (self.context.reach if self.context.recall else 0)

    def _first_reads(self, row: Row) -> list[Read]:
        """KV of other stages that this pass is the first one to read here."""
        reads = [
            read
            for read in self.context.fresh(row.frame, row.step)
            if read.level in self.edges and self._made_here(read.frame) and self._unheld(read)
        ]
        # Now and then: what is older is never asked for again, and to look through it costs more than to keep it.
        if len(self.held) > self._most_held:
            oldest = row.frame - self.context.steps - self._near
            self.held = {entry for entry in self.held if entry[0] >= oldest}
            self._most_held = 2 * len(self.held) + 64
        return reads

    def _made_here(self, frame: int) -> bool:
        """Whether the session computes a frame: it is no part of the prompt and not beyond the end."""
        return self.context.prompt <= frame and (self.end is None or frame < self.end)

    def _unheld(self, read: Read) -> bool:
        """Whether KV is asked for the first time; from now on it counts as held."""
        entry = read.frame, read.level
        if entry in self.held:
            return False
        self.held.add(entry)
        return True

    def _due(self, slot: int, step: int) -> list[Read]:
        """Deferred KV that was computed before `step` in `slot`."""
        due = [read for read in self.deferred if self._made(read) <= (slot, -step)]
        self.deferred = [read for read in self.deferred if self._made(read) > (slot, -step)]
        return due

    def _overtaken(self, reads: list[Read]) -> list[Read]:
        """KV that lies on the edges in front of `reads` and that only a later pass will read.

        There is none unless frames skipped steps: in `staggered` a level that stands for a skipped one is read in the
        slot of its making, a slot earlier than the others of that slot.
        """
        found: list[Read] = []
        if not self.context.first_steps or self.context.mode is ContextMode.clean:
            return found
        for read in reads:
            slot, _ = made = self._made(read)
            for level, edge in self.edges.items():
                for frame in (slot - 1 - level, slot - level):
                    other = Read(frame, level)
                    if (
                        edge == self.edges[read.level]
                        and self._made(other) < made
                        and self._made_here(frame)
                        and level >= self.context.first_step(frame)
                        and self.context.needed(frame, level, self.steps)
                        and self._unheld(other)
                    ):
                        found.append(other)
        return found

    # -- order ---------------------------------------------------------------------------------------------------------

    def _made(self, read: Read) -> tuple[int, int]:
        """When KV is computed in lock-step: the slot, and in it the later step first."""
        return slot_of(self.context.mode, self.context.steps, read.frame, read.level), -read.level

    def _items(self, read: Read) -> list[tuple[int, Key]]:
        """The items that bring KV, with their first layers."""
        edge, layers = self.edges[read.level], self.shape.layers
        return [
            (layer, Key(edge, self.session, read.frame, kv_part(read.level, layer, layers)))
            for layer in range(0, layers, self.runs[read.level])
        ]

    def _in_order(self, reads: list[Read]) -> list[Key]:
        """The items of `reads` as they are made: streams between two whole levels side by side, layer by layer."""
        items: list[tuple[int, int, int, Key]] = []
        segment, edges = 0, set[int]()
        for index, read in enumerate(reads):
            edge, whole = self.edges[read.level], self.runs[read.level] == self.shape.layers
            if whole or edge in edges:
                segment, edges = segment + 1, set()
            items += [(segment, layer, index, key) for layer, key in self._items(read)]
            edges.add(edge)
            segment += whole
        return [key for *_, key in sorted(items)]
