"""Messages arrive as they were sent; what is none is refused."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paceline.pipeline.speculation.window import FinishReason, SpeculationError, Verdict, Window
from paceline.runtime.language.messages import (
    Drafted,
    Failed,
    HiddenStates,
    Message,
    ParkAck,
    SessionEnd,
    SessionStart,
    Settings,
    StatsReport,
    StatsRequest,
    pack,
    record_of,
    unpack,
)

small = st.integers(0, 2**31 - 1)
tokens = st.lists(small, max_size=6).map(tuple)


@st.composite
def windows(draw: st.DrawFn) -> Window:
    held = draw(tokens)
    known = draw(st.integers(0, len(held)))
    return Window(draw(small), draw(small), draw(small), held, known, draw(st.booleans()), draw(small))


@st.composite
def verdicts(draw: st.DrawFn) -> Verdict:
    numbers = [draw(small) for _ in range(7)]
    finish = draw(st.none() | st.sampled_from(FinishReason))
    return Verdict(
        *numbers[:3], draw(tokens), *numbers[3:7], draw(st.booleans()), draw(st.integers(-1, 99)), finish=finish
    )


messages = st.one_of(
    st.builds(SessionStart, small, small, st.integers(0, 2**64 - 1), tokens, st.integers(-1, 99), small),
    windows().map(lambda window: Drafted(window)),
    windows().map(lambda window: Drafted(window, torch.rand(3, dtype=torch.float64), torch.rand(3, 7))),
    windows().map(lambda window: HiddenStates(window, None, None, torch.rand(2, 5))),
    windows().map(lambda window: HiddenStates(window, torch.rand(4, 8))),
    st.builds(Settings, small, small, small, st.lists(st.sampled_from([0.0, 0.125, 1.0])).map(tuple)),
    st.builds(SessionEnd, small, st.sampled_from(FinishReason), st.integers(-1, 99), tokens),
    st.builds(Failed, small),
    st.builds(ParkAck, small, small),
    verdicts(),
    st.builds(StatsRequest, small),
    st.builds(
        StatsReport,
        small,
        st.lists(st.tuples(small, small), max_size=4).map(tuple),
        st.lists(st.tuples(st.booleans(), small, small), max_size=4).map(tuple),
    ),
)


def plain(message: Message) -> list[object]:
    """Fields, with tensors as lists."""
    names = [field.name for field in fields(message)] if isinstance(message, Verdict) else message.__struct_fields__
    held = [getattr(message, name) for name in names]
    return [value.tolist() if isinstance(value, torch.Tensor) else value for value in held]


@given(st.lists(messages, max_size=6))
def test_a_batch_arrives_as_it_was_sent(batch: list[Message]) -> None:
    tensors = pack([record_of(message) for message in batch])
    found = list(unpack(tensors))
    assert [type(message) for message in found] == [type(message) for message in batch]
    assert [plain(message) for message in found] == [plain(message) for message in batch]
    assert sum(record_of(message).nbytes for message in batch) == sum(tensor.nbytes for tensor in tensors)


@given(st.lists(messages, min_size=1, max_size=3), st.data())
def test_a_batch_that_is_cut_off_is_refused(batch: list[Message], data: st.DataObject) -> None:
    whole = pack([record_of(message) for message in batch])
    bounds = [0]
    for message in batch:
        bounds.append(bounds[-1] + len(pack([record_of(message)])[0]))
    cut = data.draw(st.integers(1, bounds[-1] - 1).filter(lambda at: at not in bounds))
    with pytest.raises(SpeculationError, match="one version"):
        list(unpack((whole[0][:cut], *whole[1:])))


@pytest.mark.parametrize(
    "tensors", [(), (torch.zeros(3),), (torch.zeros(2, 2, dtype=torch.uint8),), (torch.tensor([99, 0]),),
                (torch.tensor([1, 0, 0, 0, 0xC1], dtype=torch.uint8),),
                pack([record_of(Drafted(Window(0, 0, 0, (1,), 1), torch.rand(3)))])[:1]],
)  # fmt: skip
def test_what_is_no_batch_is_refused(tensors: tuple[torch.Tensor, ...]) -> None:
    with pytest.raises(SpeculationError, match="one version"):
        list(unpack(tensors))
