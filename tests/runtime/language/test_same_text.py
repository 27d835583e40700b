"""Deterministic couplings: what comes out is what the serial reference gives, whatever drafts it and however."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from paceline.pipeline.speculation.acceptor import Acceptor
from paceline.pipeline.speculation.window import Coupling, Window
from paceline.runtime.language.active_session import ActiveSession, TextLog
from paceline.runtime.language.actor import LanguageActor
from paceline.runtime.language.leader import LeaderActor
from paceline.runtime.language.messages import Drafted, HiddenStates, Message, pack, unpack
from paceline.runtime.result import LanguageResult
from paceline.runtime.spec import SessionOptions
from paceline.stages.lm.text_stream import TextStream
from paceline.stages.lm.tokenizer import Tokenizer
from paceline.stages.sampling_params import SamplingParams
from tests.runtime.language.cluster import Cluster, generate, language, serial, spec_of, texts

pytestmark = pytest.mark.usefixtures("read_once")

Pair = tuple[Path, Path]
PROMPTS = ("def add(a, b):\n    return", "class", "x", "    def __init__(self, name):\n        self.name = name\n" * 4)
RANK = {"drafter": 0, "home": 1}

# Every window from 1 to 6, depth from 1 to 4, hedge width from 0 to 6 and number of verifiers at least once.
SETTINGS = [
    # window, depth, hedge, verifiers, temperature, other keys
    (1, 1, 0, 1, 1.0, {}),
    (1, 4, 6, 1, 0.0, {}),
    (2, 2, 5, 2, 1.0, {"inject__jitter_ms": 4}),
    (2, 3, 1, 1, 0.0, {"speculation__policy": "plain"}),
    (3, 1, 4, 1, 1.0, {"inject__jitter_ms": 3}),
    (3, 4, 2, 3, 0.0, {}),
    (4, 2, 0, 1, 1.0, {"speculation__policy": "redraft", "speculation__chunk": 5}),
    (4, 2, 4, 2, 0.0, {"speculation__chunk": 1}),
    (5, 3, 3, 3, 1.0, {"inject__jitter_ms": 4, "speculation__sessions": 2}),
    (5, 1, 6, 2, 0.7, {"deterministic": False}),
    (6, 2, 2, 1, 0.0, {"deterministic": False, "speculation__patience_ms": 0.5}),
    (6, 4, 5, 1, 1.0, {"speculation__patience_ms": 2, "inject__jitter_ms": 6}),
    (0, 2, 4, 1, 1.0, {}),
    ("auto", "auto", "auto", 1, 1.0, {}),
    (3, "auto", "auto", 2, 0.0, {}),
]


def counted(result: LanguageResult, name: str) -> int:
    return sum(report.counters[name] for report in result.ranks if name in report.counters)


@pytest.mark.parametrize(("window", "depth", "hedge", "verifiers", "temperature", "more"), SETTINGS)
def test_settings_change_no_token(
    pair: Pair, window: int | str, depth: int | str, hedge: int | str, verifiers: int, temperature: float,
    more: dict[str, Any],
) -> None:  # fmt: skip
    # A drafter that gets no CPU time for a while, beside other tests, is not one that is silent.
    keys = {"speculation__window": window, "speculation__depth": depth, "speculation__hedge": hedge}
    keys |= {"speculation__patience_ms": 20_000} | more
    spec = spec_of(language(pair, verifiers, **keys), PROMPTS, temperature=temperature, ignore_eos=True)
    result = generate(spec)
    assert texts(result) == texts(serial(spec))
    assert [len(text.token_ids) for text in result.sessions] == [24] * 4
    if isinstance(window, int) and window and "speculation__patience_ms" not in more:
        # Something was drafted and some of it was wrong, so the equality above says something.
        assert 0.3 < counted(result, "accepted") / counted(result, "judged") < 0.9
        assert counted(result, "fallbacks") == 0
    assert len(result.ranks) == verifiers + 1


@pytest.mark.parametrize(("drafter", "verifiers"), [("ngram", 1), ("ngram", 2), ("none", 1)])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_other_drafters_change_no_token(pair: Pair, drafter: str, verifiers: int, temperature: float) -> None:
    keys = {"speculation__drafter": drafter, "speculation__window": 3, "speculation__depth": 2}
    spec = spec_of(language(pair, verifiers, **keys), PROMPTS, temperature=temperature)
    result = generate(spec)
    assert texts(result) == texts(serial(spec))
    assert (counted(result, "windows") > 0) == (drafter == "ngram")


def test_plain_decoding_is_the_reference_and_drafts_nothing(pair: Pair) -> None:
    spec = spec_of(language(pair), PROMPTS, plain=True)
    result = generate(spec)
    assert texts(result) == texts(serial(spec))
    assert counted(result, "windows") == 0
    assert counted(result, "main_drafted") == 0
    assert all(text.drafted == text.refilled == 0 for text in result.sessions)
    assert (result.predicted_speedup, result.measured_speedup, result.warnings) == (None, None, [])


@pytest.mark.parametrize("sampling", [{"top_k": 5}, {"top_p": 0.8}, {"repetition_penalty": 1.3}])
def test_how_tokens_are_chosen(pair: Pair, sampling: dict[str, float]) -> None:
    topology = language(pair, speculation__window=3, speculation__depth=2, speculation__hedge=2)
    spec = spec_of(topology, PROMPTS, **sampling)
    assert texts(generate(spec)) == texts(serial(spec))
    assert texts(serial(spec)) != texts(serial(spec_of(topology, PROMPTS)))


@pytest.mark.parametrize("sessions", [1, 5, 32])
def test_sessions_of_mixed_lengths_join_and_leave(pair: Pair, sessions: int) -> None:
    prompts = [("def f(x):\n" * (number % 7) + "return "[: number % 5 + 1]) for number in range(32)]
    topology = language(
        pair, speculation__window=3, speculation__depth=2, speculation__hedge=3, speculation__sessions=sessions
    )
    # The stop string ends some of them early.
    spec = spec_of(topology, prompts, max_tokens=12, stop=("e", "\n"))
    reference = serial(spec)
    assert len({len(text.token_ids) for text in reference.sessions}) > 3
    result = generate(spec)
    assert texts(result) == texts(reference)
    assert [text.id for text in result.sessions] == list(range(32))
    running = [
        sum(other.started_s <= text.started_s < other.finished_s for other in result.sessions)
        for text in result.sessions
    ]
    assert max(running) <= sessions
    assert (max(running) > 1) == (sessions > 1)
    leader = next(report for report in result.ranks if report.role == "verifier")
    if sessions > 1:
        assert leader.tokens > 2 * leader.passes, "a pass takes the windows of several sessions"


def test_greedy_is_what_transformers_generates(pair: Pair) -> None:
    topology = language(pair, speculation__window=4, speculation__depth=2, speculation__hedge=4)
    spec = spec_of(topology, PROMPTS, temperature=0.0, max_tokens=40, ignore_eos=True)
    result = generate(spec)
    model = AutoModelForCausalLM.from_pretrained(pair[0]).eval()
    model.generation_config.eos_token_id = None
    from paceline.stages.lm.tokenizer import Tokenizer

    for prompt, text in zip(PROMPTS, result.sessions, strict=True):
        ids = torch.tensor([Tokenizer.load(pair[0]).encode(prompt)])
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False)
        assert text.token_ids == whole[0, ids.shape[1] :].tolist()


# -- ends --------------------------------------------------------------------------------------------------------------


def test_a_stop_string_over_the_border_of_two_tokens(pair: Pair) -> None:
    topology = language(pair, speculation__window=4, speculation__depth=3, speculation__hedge=4)
    whole = serial(spec_of(topology, PROMPTS[:1], max_tokens=40))
    text = whole.sessions[0].text
    # The middle of a text of tokens of one and more characters: some border lies inside.
    stop = text[len(text) // 2 : len(text) // 2 + 6]
    for verifiers in (1, 3):
        spec = spec_of(
            language(pair, verifiers, speculation__window=4, speculation__depth=3, speculation__hedge=4),
            PROMPTS,
            max_tokens=40,
            stop=(stop, "never in there"),
        )
        result = generate(spec)
        assert texts(result) == texts(serial(spec))
        stopped = result.sessions[0]
        assert stopped.finish_reason == "stop"
        assert stopped.text == text[: text.index(stop)]
        assert len(stopped.token_ids) < 40
        assert stopped.drafted + stopped.refilled <= len(stopped.token_ids)


def test_the_end_of_text(pair: Pair, tmp_path: Path) -> None:
    topology = language(pair, speculation__window=4, speculation__depth=2, speculation__hedge=4)
    tokens = serial(spec_of(topology, PROMPTS[:1], max_tokens=20)).sessions[0].token_ids
    end = next(token for index, token in enumerate(tokens) if index > 5 and token not in tokens[:index])
    ending = ended_at(pair, tmp_path, end)
    for verifiers in (1, 2):
        keys = {"speculation__window": 4, "speculation__depth": 2, "speculation__hedge": 4}
        spec = spec_of(language(ending, verifiers, **keys), PROMPTS, max_tokens=20)
        result = generate(spec)
        assert texts(result) == texts(serial(spec))
        first = result.sessions[0]
        assert first.finish_reason == "eos"
        assert first.token_ids == tokens[: tokens.index(end) + 1]


# -- options of each session -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verifiers", [1, 2])
def test_sessions_with_options_of_their_own(pair: Pair, verifiers: int) -> None:
    """Side by side they are what each is alone, in every way of running it."""
    keys = {"speculation__window": 3, "speculation__depth": 2, "speculation__hedge": 3}
    topology = language(pair, verifiers, **keys)
    own = (
        SessionOptions(SamplingParams(1.0), 20),
        SessionOptions(SamplingParams(0.0), 9, seed=5),
        SessionOptions(SamplingParams(0.6, top_k=4, repetition_penalty=1.3), 14, ("e",), 6),
        SessionOptions(SamplingParams(1.0), 1, seed=6),
    )
    spec = replace(spec_of(topology, PROMPTS, ignore_eos=True), own=own)
    result = generate(spec)
    assert texts(result) == texts(serial(spec))
    for session, (prompt, options) in enumerate(zip(PROMPTS, own, strict=True)):
        seed = spec.session_seed(session)
        alone = replace(
            spec, prompts=(prompt,), own=(), sampling=options.sampling, max_tokens=options.max_tokens, stop=options.stop
        )
        alone = replace(alone, own=(replace(alone.options(0), seed=seed),))
        assert texts(serial(alone)) == texts(result)[session : session + 1]


def test_a_greedy_session_beside_others_that_reject(pair: Pair) -> None:
    keys = {"speculation__window": 3, "speculation__depth": 2, "speculation__hedge": 2}
    topology = language(pair, speculation__coupling="rejection", **keys)
    own = tuple(SessionOptions(SamplingParams(t, coupling=Coupling.rejection), 16) for t in (0.0, 1.0, 1e-38, 0.8))
    spec = replace(spec_of(topology, PROMPTS, ignore_eos=True), own=own)
    result, reference = generate(spec), serial(spec)
    assert [texts(result)[n] for n in (0, 2)] == [texts(reference)[n] for n in (0, 2)]
    assert [len(text.token_ids) for text in result.sessions] == [16] * 4
    assert counted(result, "accepted") > 0


# -- the end -----------------------------------------------------------------------------------------------------------


def ended_at(pair: Pair, folder: Path, token: int) -> Pair:
    """The pair with another token that ends a text."""
    found = (folder / "target", folder / "draft")
    for old, new in zip(pair, found, strict=True):
        shutil.copytree(old, new)
        for name in ("config.json", "generation_config.json"):
            fields = json.loads((new / name).read_text()) | {"eos_token_id": token}
            (new / name).write_text(json.dumps(fields))
    return found


def stopping(tokenizer: Tokenizer, ids: list[int]) -> tuple[int, str] | None:
    """How many of the tokens complete a stop string of two letters for the first time, and the string; the token behind
    them comes but once."""
    stream, shown, last = TextStream(tokenizer), "", ""
    for count, token in enumerate(ids[:7]):
        stop = shown[-2:]
        if last and len(stop) == 2 and stop.isascii() and stop not in shown[:-1] and ids.count(token) == 1:
            return count, stop
        last = stream.push(token)
        shown += last
    return None


@pytest.mark.parametrize("verifiers", [1, 2])
def test_a_stop_string_and_another_end_in_one_verdict(pair: Pair, tmp_path: Path, verifiers: int) -> None:
    """The target drafts for itself, so that a verdict brings nine tokens; whichever end comes first decides."""
    keys = {"speculation__window": 8, "speculation__depth": 1, "speculation__hedge": 0}
    prompts = [f"{prompt}{end}" for prompt in PROMPTS for end in ("", " ", "(", "\n", ":", "a", "b", "self")]
    spec = spec_of(language(pair), prompts, max_tokens=12, temperature=0.0, ignore_eos=True)
    tokenizer = Tokenizer.load(pair[0])
    prompt, whole, (at, stop) = next(
        (prompt, text.token_ids, found)
        for prompt, text in zip(prompts, serial(spec).sessions, strict=True)
        if (found := stopping(tokenizer, text.token_ids)) is not None
    )
    for most in range(at - 1, at + 4):
        spec = spec_of(
            language((pair[0], pair[0]), verifiers, **keys),
            [prompt],
            most,
            temperature=0.0,
            stop=(stop,),
            ignore_eos=True,
        )
        reference = serial(spec)
        assert texts(generate(spec)) == texts(reference)
        assert reference.sessions[0].finish_reason == ("stop" if most >= at else "length")
    # The token behind the stop string ends the text: in the same verdict, and too late.
    ending = ended_at(pair, tmp_path, whole[at])
    target = language((ending[0], ending[0]), verifiers, **keys)
    for stops, reason in (((stop,), "stop"), ((), "eos"), (("\ufffe",), "eos")):
        spec = spec_of(target, [prompt], 12, temperature=0.0, stop=stops)
        assert texts(generate(spec)) == texts(serial(spec))
        assert serial(spec).sessions[0].finish_reason == reason


@settings(max_examples=60, deadline=None)
@given(
    ids=st.lists(st.integers(0, 299), min_size=1, max_size=24),
    stops=st.lists(st.text("aefn(\n", min_size=1, max_size=2), max_size=2),
    eos=st.sets(st.integers(0, 299), max_size=40),
    room=st.integers(1, 24),
    cuts=st.lists(st.integers(1, 9), max_size=24),
)
def test_any_cut_into_verdicts_gives_the_same_end_and_text(
    pair: Pair, ids: list[int], stops: list[str], eos: set[int], room: int, cuts: list[int]
) -> None:
    tokenizer = Tokenizer.load(pair[0])
    ids = ids + ids[-1:] * room
    outcomes = []
    for sizes in ([1] * len(ids), [*cuts, *[1] * len(ids)]):
        acceptor = Acceptor(0, [5, 6], 2 + room, Coupling.greedy, eos)
        live = ActiveSession(0, [5, 6], 2 + room, 0, None, tokenizer, stops, TextLog(None), eos)  # type: ignore[arg-type]
        check = acceptor.plan(Window(0, 0, 0, (5, 6), 2, True))
        assert check is not None
        verdict = acceptor.settle(check, 0, None, ids[0])
        end, given = live.commit(verdict), 1
        for size in sizes:
            if verdict.finish is not None or end is not None:
                break
            # Its first token is known since the verdict before; the extra one comes with the last.
            window = Window(0, 0, acceptor.forwarded, tuple(ids[given - 1 : given + size - 1]), 1)
            check = acceptor.plan(window)
            assert check is not None
            taken = len(check.drafted)
            verdict = acceptor.settle(check, taken, None, ids[given + taken] if check.extra else None)
            end = live.commit(verdict)
            given += taken + check.extra
        assert end is not None
        outcomes.append((live.finish(*end), end[1], live.tokens, "".join(live._text)))
    assert outcomes[0] == outcomes[1]


# -- a drafter in trouble ----------------------------------------------------------------------------------------------


def slowed(seconds: float) -> Any:
    def prepare(actor: LanguageActor) -> None:
        if actor.role == "drafter":
            step = actor._stage.step  # type: ignore[attr-defined]

            def slow(*args: Any) -> Any:
                time.sleep(seconds)
                return step(*args)

            actor._stage.step = slow  # type: ignore[attr-defined]

    return prepare


def test_a_slow_drafter_is_decoded_past(pair: Pair) -> None:
    keys = {"speculation__window": 3, "speculation__depth": 2, "speculation__hedge": 2, "speculation__patience_ms": 3}
    spec = spec_of(language(pair, **keys), PROMPTS)
    result = Cluster(spec, prepare=slowed(0.02)).run()
    assert texts(result) == texts(serial(spec))
    assert counted(result, "fallbacks") > 0
    assert counted(result, "from_plain") > 20
    assert any("silent for too long" in warning for warning in result.warnings)


@pytest.mark.parametrize("verifiers", [1, 2])
def test_a_drafter_that_fails_changes_no_token(pair: Pair, verifiers: int) -> None:
    keys = {"speculation__window": 3, "speculation__depth": 2, "speculation__hedge": 2}
    spec = spec_of(language(pair, verifiers, **keys), PROMPTS)

    def prepare(actor: LanguageActor) -> None:
        if actor.role == "drafter":
            step, calls = actor._stage.step, []  # type: ignore[attr-defined]

            def failing(*args: Any) -> Any:
                calls.append(1)
                if len(calls) > 12:
                    raise ValueError("no more drafts")
                return step(*args)

            actor._stage.step = failing  # type: ignore[attr-defined]

    result = Cluster(spec, prepare=prepare).run(failing=[RANK["drafter"]])
    assert texts(result) == texts(serial(spec))
    assert result.warnings[0] == "the drafter is lost; decoding went on without it"
    assert 0 < counted(result, "from_drafts") < 60
    assert result.settings["window"] == 0


def test_a_drafter_that_takes_no_messages_is_given_up(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paceline.runtime.language.drafter_client._BACKLOG", 4)
    keys = {"speculation__window": 3, "speculation__depth": 2, "speculation__patience_ms": 2, "edges__1__inflight": 1,
            "speculation__hedge": 0}  # fmt: skip
    spec = spec_of(language(pair, **keys), PROMPTS)
    result = Cluster(spec, prepare=slowed(0.25)).run()
    assert texts(result) == texts(serial(spec))
    assert result.warnings[0] == "the drafter takes no messages; decoding went on without it"


@pytest.mark.parametrize("verifiers", [1, 3])
def test_nothing_is_produced_for_a_session_whose_messages_wait(
    pair: Pair, verifiers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paceline.runtime.language.mailbox._MAX_WAITING", 1)
    keys = {"speculation__window": 2, "speculation__depth": 4, "speculation__hedge": 0}
    keys |= {f"edges__{edge}__inflight": 1 for edge in range(2 if verifiers == 1 else 3)}
    spec = spec_of(language(pair, verifiers, **keys), PROMPTS)
    most = [0]

    def prepare(actor: LanguageActor) -> None:
        put = actor.mailbox.put

        def counted(edge: int, target: int, message: Message) -> None:
            put(edge, target, message)
            if isinstance(message, Drafted) or (isinstance(message, HiddenStates) and actor.rank == actor.roles.first):
                waiting = unpack(pack(actor.mailbox._waiting[edge, target, message.window.session]))
                most[0] = max(most[0], sum(isinstance(each, Drafted | HiddenStates) for each in waiting))

        actor.mailbox.put = counted  # type: ignore[method-assign]
        if verifiers > 1 and actor.rank == actor.roles.verifiers[1]:
            forward = actor.stage.forward  # type: ignore[attr-defined]

            def slow(*args: Any) -> Any:
                time.sleep(0.02)
                return forward(*args)

            actor.stage.forward = slow  # type: ignore[attr-defined]

    assert texts(Cluster(spec, prepare).run()) == texts(serial(spec))
    assert most == [1]


# -- cancellation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verifiers", [1, 3])
def test_a_cancelled_session_frees_everything_and_disturbs_nobody(pair: Pair, verifiers: int) -> None:
    keys = {"speculation__window": 3, "speculation__depth": 3, "speculation__hedge": 3, "speculation__sessions": 4}
    spec = spec_of(language(pair, verifiers, **keys), [*PROMPTS, *PROMPTS], max_tokens=30)

    def prepare(actor: LanguageActor) -> None:
        if not isinstance(actor, LeaderActor):
            return
        send = actor.send

        def cancelling() -> None:
            live = actor._live.get(1)
            if live is not None and len(live.tokens) >= live.prompt_tokens + 5:
                actor.cancel(1)
                actor.cancel(1)
                actor.cancel(7)
                actor.cancel(99)
            send()

        actor.send = cancelling  # type: ignore[method-assign]

    cluster = Cluster(spec, prepare=prepare)
    found, reference = texts(cluster.run()), texts(serial(spec))
    text, tokens, reason = found.pop(1)
    assert reason == "cancelled"
    assert 5 <= len(tokens) < 30
    assert tokens == reference[1][1][: len(tokens)]
    assert reference.pop(1)[0].startswith(text)
    assert found.pop() == ("", [], "cancelled")
    assert found == reference[:-1]
    check_all_free(cluster)


def check_all_free(cluster: Cluster) -> None:
    """No worker holds anything of a session that is over."""
    for actor in cluster.actors.values():
        held: list[Any] = []
        stage = getattr(actor, "stage", None) or actor._stage  # type: ignore[attr-defined]
        held += stage._decoder.sequences if hasattr(stage, "_decoder") else []
        for owner, names in (
            (actor, ("_cores", "_live", "_evidence", "_inbox", "_warm")),
            (stage, ("_sequences", "_carry", "_rows", "_seeds", "_draws")),
            (getattr(actor, "acceptors", None), ("_acceptors", "_seeds")),
        ):
            held += [value for name in names for value in [getattr(owner, name, None)] if value]
        assert held == [], actor.role


def test_everything_is_free_at_the_end(pair: Pair) -> None:
    for coupling in ("gumbel", "rejection"):
        keys = {"speculation__window": 3, "speculation__depth": 2, "speculation__hedge": 4}
        topology = language(pair, 2, speculation__coupling=coupling, **keys)
        cluster = Cluster(spec_of(topology, PROMPTS, stop=("e",)))
        cluster.run()
        check_all_free(cluster)
