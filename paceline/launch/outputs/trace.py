"""`trace.json`: the run in Chrome's trace event format, for https://ui.perfetto.dev and chrome://tracing.

Of a generation, passes are forwards and go by the position of their first token.

A process is a rank, a thread is a stage (and session, where a stage serves several), a slice is a pass with its layer
runs inside. Arrows follow the latent: step to step across ranks, last step to decoder, decoder to sink. The process
`run` counts frames in flight and marks late frames and decisions. Times are microseconds with three decimals.

Format: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import msgspec

from paceline.launch.outputs.style import caption, position_name, session_letter
from paceline.launch.outputs.timeline import WAIT, Pass, passes
from paceline.runtime.result import Event, Result
from paceline.runtime.spec import GenerateSpec, RunSpec

__all__ = ["trace_json"]

# Reserved names that chrome://tracing maps to colours; Perfetto goes by the slice's name and needs none.
_COLOUR_NAMES = (
    "thread_state_running", "rail_animation", "rail_idle", "thread_state_iowait", "rail_response", "rail_load",
)  # fmt: skip
_WAIT_THREAD = 0
_Trace = dict[str, Any]


def trace_json(spec: RunSpec | GenerateSpec, result: Result[Any]) -> bytes:
    """The trace of an `aligned` result as JSON. The same result gives the same bytes."""
    return msgspec.json.encode(
        {
            "displayTimeUnit": "ms",
            "otherData": {"run": caption(spec)},
            "traceEvents": _Tracer(spec, result).events(),
        }
    )


class _Tracer:
    def __init__(self, spec: RunSpec | GenerateSpec, result: Result[Any]) -> None:
        self.topology, self.result = spec.topology, result
        self.position_name = position_name(spec)
        everything = [event for report in result.ranks for event in report.events]
        self.waits = [event for event in everything if event.kind == WAIT]
        self.passes = passes(everything)
        self.order = {stage: index for index, stage in enumerate(self.topology.stages)}
        streams = sorted({(p.rank, p.stage, p.session) for p in self.passes}, key=self._thread_order)
        shared: dict[tuple[int, str], int] = {}
        for rank, stage, _ in streams:
            shared[rank, stage] = shared.get((rank, stage), 0) + 1
        self.threads: dict[tuple[int, str, int], tuple[int, str]] = {}
        following: dict[int, int] = {}
        for rank, stage, session in streams:
            thread = following[rank] = following.get(rank, _WAIT_THREAD) + 1
            many = shared[rank, stage] > 1
            name = f"{stage} · session {session_letter(session)} ({session})" if many else stage
            self.threads[rank, stage, session] = thread, name
        self.run_process = 1 + max((report.rank for report in result.ranks), default=-1)

    def events(self) -> list[_Trace]:
        """Names first, then everything in order of time; of two that start together the longer one first."""
        timed = [*self._slices(), *self._wait_slices(), *self._flows(), *self._frames_in_flight(), *self._marks()]
        rank_of = {"X": 0, "s": 1, "f": 2, "C": 3, "i": 4}
        timed.sort(key=lambda event: (event["ts"], rank_of[event["ph"]], -event.get("dur", 0.0), event["pid"]))
        return [*self._names(), *timed]

    def _names(self) -> Iterator[_Trace]:
        hosts = {host: number for number, host in enumerate(dict.fromkeys(r.host for r in self.result.ranks))}
        for report in sorted(self.result.ranks, key=lambda report: report.rank):
            label = f"rank {report.rank} · {report.group} ({report.device})"
            yield _name("process_name", report.rank, 0, name=label)
            yield _name("process_sort_index", report.rank, 0, sort_index=report.rank)
            # Hosts by number: traces are passed around, and a name says who owns the machine.
            threads = f"{report.threads} thread{'s' if report.threads > 1 else ''}"
            labels = f"host {hosts[report.host]}, pid {report.pid}, {threads}"
            yield _name("process_labels", report.rank, 0, labels=labels)
        for rank in sorted({wait.rank for wait in self.waits}):
            yield _name("thread_name", rank, _WAIT_THREAD, name="idle")
            yield _name("thread_sort_index", rank, _WAIT_THREAD, sort_index=1 << 16)
        for (rank, _, _), (thread, name) in self.threads.items():
            yield _name("thread_name", rank, thread, name=name)
            yield _name("thread_sort_index", rank, thread, sort_index=thread)
        yield _name("process_name", self.run_process, 0, name="run")
        yield _name("process_sort_index", self.run_process, 0, sort_index=-1)

    def _slices(self) -> Iterator[_Trace]:
        for item in self.passes:
            yield self._slice(item, self._pass_name(item), item.start_s, item.end_s)
            if len(item.units) > 1:
                for unit, layers in zip(item.units, _layer_runs(item.units), strict=True):
                    yield self._slice(item, layers, unit.start_s, unit.end_s)

    def _slice(self, item: Pass, name: str, start_s: float, end_s: float) -> _Trace:
        start, end = _ns(start_s), _ns(end_s)
        return {
            "ph": "X",
            "name": name,
            "cat": item.kind,
            "pid": item.rank,
            "tid": self.threads[item.rank, item.stage, item.session][0],
            "ts": start / 1000,
            "dur": max(0, end - start) / 1000,
            "cname": _COLOUR_NAMES[item.session % len(_COLOUR_NAMES)],
            "args": {
                "session": item.session,
                self.position_name: item.frame,
                "step": self._step(item.step),
                "kind": item.kind,
                "stage": item.stage,
            },
        }

    def _pass_name(self, item: Pass) -> str:
        session = session_letter(item.session)
        if item.kind == "prefill":
            return f"{session} · prompt frame {item.frame}"
        if item.step < 0:
            return f"{session} · {item.kind} · {self.position_name} {item.frame}"
        step = self._step(item.step)
        return f"{session} · frame {item.frame} · {step if isinstance(step, str) else f'step {step}'}"

    def _step(self, step: int) -> int | str | None:
        if step < 0:
            return None
        return "clean" if step >= self.topology.last_level else step

    def _wait_slices(self) -> Iterator[_Trace]:
        for wait in self.waits:
            start, end = _ns(wait.start_s), _ns(wait.end_s)
            yield {
                "ph": "X",
                "name": f"idle · {wait.stage}" if wait.stage else "idle",
                "cat": "wait",
                "pid": wait.rank,
                "tid": _WAIT_THREAD,
                "ts": start / 1000,
                "dur": max(0, end - start) / 1000,
                "cname": "grey",
                "args": {"session": wait.session, "frame": wait.frame, "stage": wait.stage, "kind": "wait"},
            }

    def _flows(self) -> Iterator[_Trace]:
        """An arrow for each item edge and frame: from the pass that gave the latent to the first that used it."""
        givers: dict[tuple[str, int, int], Pass] = {}
        takers: dict[tuple[str, int, int], Pass] = {}
        for item in self.passes:
            key = item.stage, item.session, item.frame
            # The clean pass comes after the latent has left; `receive` and `drain` only take it in.
            is_clean = item.kind == "layers" and item.step >= self.topology.last_level
            if item.kind not in ("receive", "drain"):
                takers.setdefault(key, item)
                if not (is_clean and key in givers):
                    givers[key] = item
        targets: dict[str, list[str]] = {}
        for edge in self.topology.edges:
            if edge.carries == "item":
                targets.setdefault(edge.source, []).append(edge.target)
        number = 0
        for (stage, session, frame), giver in givers.items():
            for target in targets.get(stage, ()):
                taker = takers.get((target, session, frame))
                if taker is None:
                    continue
                start, end = _ns(giver.start_s), _ns(giver.end_s)
                arrival = _ns(taker.start_s)
                leaves = min(max(start, end - 1), arrival)
                if leaves < start:  # clocks disagree: an arrow back in time would be dropped by the viewer
                    continue
                number += 1
                flow = {"cat": "latent", "name": "latent", "id": number}
                tail, head = (self.threads[p.rank, p.stage, p.session][0] for p in (giver, taker))
                yield {"ph": "s", **flow, "pid": giver.rank, "tid": tail, "ts": leaves / 1000}
                yield {"ph": "f", "bp": "e", **flow, "pid": taker.rank, "tid": head, "ts": arrival / 1000}

    def _frames_in_flight(self) -> Iterator[_Trace]:
        for session in sorted({time.session for time in self.result.times}):
            changes: dict[int, int] = {}
            for time in self.result.times:
                if time.session == session:
                    for instant, change in ((time.emitted_s, 1), (time.shown_s, -1)):
                        changes[_ns(instant)] = changes.get(_ns(instant), 0) + change
            level = 0
            for instant in sorted(changes):
                level += changes[instant]
                yield {
                    "ph": "C",
                    "name": f"frames in flight · session {session_letter(session)}",
                    "pid": self.run_process,
                    "tid": 0,
                    "ts": instant / 1000,
                    "args": {"frames": level},
                }

    def _marks(self) -> Iterator[_Trace]:
        shown = {(time.session, time.frame): time for time in self.result.times}
        for time in shown.values():
            if not math.isnan(time.due_s) and time.shown_s > time.due_s:
                args = {"session": time.session, "frame": time.frame, "late_ms": 1000 * (time.shown_s - time.due_s)}
                yield self._mark(f"{session_letter(time.session)} · frame {time.frame} late", time.shown_s, args)
        for decision in self.result.decisions:
            at = shown.get((decision.session, decision.frame))
            if at is not None:
                name = f"{session_letter(decision.session)} · {decision.what} · frame {decision.frame}"
                args = {"session": decision.session, "frame": decision.frame, "value": decision.value}
                yield self._mark(name, at.emitted_s, args)

    def _mark(self, name: str, at_s: float, args: dict[str, Any]) -> _Trace:
        base = {"ph": "i", "s": "p", "pid": self.run_process, "tid": 0}
        return {**base, "name": name, "cat": "deadline", "ts": _ns(at_s) / 1000, "args": args}

    def _thread_order(self, stream: tuple[int, str, int]) -> tuple[int, int, str, int]:
        rank, stage, session = stream
        return rank, self.order.get(stage, len(self.order)), stage, session


def _ns(time_s: float) -> int:
    return round(time_s * 1e9)


def _layer_runs(units: tuple[Event, ...]) -> Iterator[str]:
    for unit, following in zip(units, [*units[1:], None], strict=True):
        last = following.layer - 1 if following is not None else None
        if last is None or last < unit.layer:
            yield f"layers {unit.layer}…"
        else:
            yield f"layer {unit.layer}" if last == unit.layer else f"layers {unit.layer}–{last}"


def _name(kind: str, process: int, thread: int, **args: str | int) -> _Trace:
    return {"ph": "M", "name": kind, "pid": process, "tid": thread, "ts": 0, "args": args}
