"""Layers with a state of constant size: the peer's answer, any split, any rollback, any fork."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen3NextConfig
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

from paceline.stages.lm.blueprint import Blueprint
from paceline.stages.lm.decoder import Decoder
from paceline.stages.lm.folder import ModelFolderError
from paceline.stages.lm.memory.config import MemoryLMConfig
from paceline.stages.lm.memory.mixer import MemoryMixer
from paceline.stages.lm.memory.model import MemoryLM
from paceline.stages.lm.sequence_state import RollbackError, SequenceState

from .memory_models import SIZES, save_memory
from .models import logits_of, tokens

KINDS = {
    "gated_delta": ["gated_delta", "gated_delta", "delta"],
    "ttt_linear": ["ttt_linear", "ttt_linear"],
    "hybrid": ["linear", "attention", "gated_delta"],
}
LENGTH = 60


@pytest.fixture(scope="module", params=list(KINDS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp(request.param)
    save_memory(path, KINDS[request.param])
    return path


@pytest.fixture(scope="module")
def reference(folder: Path) -> torch.Tensor:
    """The model's own forward, over all tokens at once."""
    return logits_of(_model(folder), tokens(LENGTH))


def _model(folder: Path) -> torch.nn.Module:
    return MemoryLM.from_pretrained(folder).eval()


def states_of(decoder: Decoder, sequence: int) -> list[torch.Tensor]:
    held = decoder._held(sequence)
    assert isinstance(held, SequenceState)
    return [part for state in held.states() for part in state]


# -- the peer ----------------------------------------------------------------------------------------------------------


def test_the_gated_delta_layer_is_that_of_qwen3_next() -> None:
    """Transformers' layer, with the same weights, gives the same; its projections are ordered by head."""
    heads, key, value, hidden = 3, 8, 5, 24
    theirs = Qwen3NextGatedDeltaNet(
        Qwen3NextConfig(
            hidden_size=hidden, num_hidden_layers=1, linear_num_key_heads=heads, linear_num_value_heads=heads,
            linear_key_head_dim=key, linear_value_head_dim=value, linear_conv_kernel_dim=4,
            layer_types=["linear_attention"],
        ),
        0,
    )  # fmt: skip
    config = MemoryLMConfig(
        hidden_size=hidden, num_hidden_layers=1, num_attention_heads=3, memory_heads=heads, memory_key_size=key,
        memory_value_size=value,
    )  # fmt: skip
    ours = MemoryMixer(config, 0, "gated_delta")
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=draw))
        by_head = theirs.in_proj_qkvz.weight.view(heads, -1, hidden)
        q, k, v, z = (part.flatten(0, 1) for part in by_head.split([key, key, value, value], dim=1))
        ours.in_proj.weight.copy_(torch.cat([q, k, v]))
        ours.z_proj.weight.copy_(z)
        ours.gate_proj.weight.copy_(theirs.in_proj_ba.weight.view(heads, 2, hidden).transpose(0, 1).flatten(0, 1))
        ours.conv.copy_(theirs.conv1d.weight[:, 0].T)
        ours.rule.A_log.copy_(theirs.A_log)  # type: ignore[union-attr]
        ours.rule.dt_bias.copy_(theirs.dt_bias)  # type: ignore[union-attr]
        ours.out_norm.copy_(theirs.norm.weight)
        ours.out_proj.weight.copy_(theirs.out_proj.weight)
        rows = torch.randn(2, 150, hidden, generator=draw)
        torch.testing.assert_close(ours(rows)[0], theirs(rows), atol=2e-5, rtol=2e-5)


# -- the decoder -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuts", [[60], [1] * 60, [13, 1, 8, 1, 1, 36]], ids=["prefill", "decode", "chunks"])
def test_logits_are_those_of_the_models_own_forward(folder: Path, reference: torch.Tensor, cuts: list[int]) -> None:
    decoder = Decoder.load(folder)
    sequence, beside = decoder.open(), decoder.open()
    found = [decoder.forward([(beside, tokens(3)), (sequence, part)])[1] for part in tokens(LENGTH).split(cuts)]
    torch.testing.assert_close(torch.cat(found), reference, atol=5e-5, rtol=0)


@pytest.fixture(scope="module", params=[1, 7])
def decoder(folder: Path, request: pytest.FixtureRequest) -> Decoder:
    return Decoder.load(folder, rows=request.param)


@pytest.fixture(scope="module")
def bits(decoder: Decoder) -> torch.Tensor:
    sequence = decoder.open()
    return decoder.forward([(sequence, tokens(LENGTH))])[0]


@given(cuts=st.lists(st.integers(1, 9), min_size=1, max_size=10), data=st.data())
@settings(max_examples=12, deadline=None)
def test_rollbacks_and_forks_leave_no_trace(
    decoder: Decoder, bits: torch.Tensor, cuts: list[int], data: st.DataObject
) -> None:
    """Windows of which a part is taken back, wrong drafts, forks that go on by themselves: bits of never having been
    there, in what is computed and in the states."""
    sequence, beside = decoder.open(), decoder.open()
    at = 0
    for count in cuts:
        if at + count > LENGTH:
            break
        wrong = data.draw(st.integers(0, 9))
        match data.draw(st.sampled_from(["nothing", "rollback", "fork", "within"])):
            case "rollback" if wrong:
                decoder.forward([(sequence, tokens(wrong, seed=9))])
                decoder.truncate(sequence, at)
            case "fork":
                old, sequence = sequence, decoder.fork(sequence, at)
                decoder.forward([(old, tokens(1 + wrong, seed=8))])
                at -= data.draw(st.integers(0, at))
                decoder.truncate(sequence, at)
                decoder.close(old)
            case "within":
                decoder.forward([(sequence, tokens(LENGTH)[at : at + count])])
                at = data.draw(st.integers(at, at + count))
                decoder.truncate(sequence, at)
        window = tokens(LENGTH)[at : at + count]
        if len(window):
            logits = decoder.forward([(beside, tokens(1)), (sequence, window)])[1]
            assert torch.equal(logits, bits[at : at + len(window)])
            at += len(window)
    fresh = decoder.open()
    decoder.forward([(fresh, tokens(LENGTH)[:at])])
    found, wanted = states_of(decoder, sequence), states_of(decoder, fresh)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_runs_of_layers_have_the_same_bits(folder: Path, decoder: Decoder, bits: torch.Tensor) -> None:
    runs = [Decoder.load(folder, layers=run, rows=decoder.rows) for run in ((0, 1), (1, len(decoder.layers)))]
    opened = [run.open() for run in runs]
    found = []
    for window in tokens(LENGTH).split(7):
        for run, sequence in zip(runs, opened, strict=True):
            window = run.forward([(sequence, window)])[0]
        found.append(window)
    assert torch.equal(torch.cat(found), bits)


def test_the_state_has_a_constant_size(folder: Path) -> None:
    decoder = Decoder.load(folder, rollback=8)
    sequence = decoder.open()
    sizes, held = set(), []
    for part in tokens(200).split(5):
        decoder.forward([(sequence, part)])
        state = decoder._held(sequence)
        assert isinstance(state, SequenceState)
        sizes.add(state.state_bytes)
        held.append(state.nbytes)
    assert sizes == {Blueprint.read(folder).state_bytes}
    if "hybrid" not in folder.name:
        assert len(set(held[-20:])) == 1


def test_a_rollback_beyond_what_is_kept_is_refused(folder: Path) -> None:
    decoder = Decoder.load(folder, rollback=4)
    sequence = decoder.open()
    for part in tokens(30).split(3):
        decoder.forward([(sequence, part)])
    decoder.truncate(sequence, 26)
    with pytest.raises(RollbackError, match="3 positions of 26 were to be kept"):
        decoder.truncate(sequence, 3)
    with pytest.raises(RollbackError, match="fork at 3"):
        decoder.fork(sequence, 3)
    assert decoder.length(sequence) == 26
    decoder.truncate(sequence, 0)
    again, fresh = decoder.forward([(sequence, tokens(5))])[0], decoder.open()
    torch.testing.assert_close(again, decoder.forward([(fresh, tokens(5))])[0], atol=5e-5, rtol=0)


def test_both_sides_of_a_fork_go_on_and_back(decoder: Decoder, bits: torch.Tensor) -> None:
    one = decoder.open()
    decoder.forward([(one, tokens(LENGTH)[:20])])
    other = decoder.fork(one, 20)
    decoder.forward([(one, tokens(LENGTH)[20:30])])
    decoder.forward([(other, tokens(10, seed=4))])
    for sequence in (one, other):
        decoder.truncate(sequence, 25 if sequence == one else 20)
        at = decoder.length(sequence)
        assert torch.equal(decoder.forward([(sequence, tokens(LENGTH)[at:])])[0], bits[at:])


def test_a_pass_that_fails_halfway_leaves_no_trace(
    decoder: Decoder, bits: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first layers have written their states when the last one fails."""
    sequence = decoder.open()
    decoder.forward([(sequence, tokens(LENGTH)[:20])])

    def fail(*args: object, **kwargs: object) -> None:
        raise MemoryError("no memory left")

    with monkeypatch.context() as patched, pytest.raises(MemoryError):
        patched.setattr(decoder._run._layers[-1].mlp, "forward", fail)
        decoder.forward([(sequence, tokens(9, seed=4))])
    assert decoder.length(sequence) == 20
    assert torch.equal(decoder.forward([(sequence, tokens(LENGTH)[20:])])[0], bits[20:])


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layer_kinds": ["gated_delta"]}, "layer_kinds names 1 layers and num_hidden_layers is 2"),
        ({"layer_kinds": ["mamba", "delta"]}, "'mamba'; a layer is one of gated_delta, delta, linear, ttt_linear"),
        ({"layer_kinds": ["attention", "delta"]}, "max_position_embeddings is missing"),
        ({"layer_kinds": ["ttt_linear", "delta"], "memory_value_size": 4}, "values of the same size"),
        ({"memory_heads": 0}, "memory_heads is 0"),
    ],
)
def test_configurations_that_can_not_be(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MemoryLMConfig(**(SIZES | {"num_hidden_layers": 2} | wrong))


def test_another_cache_is_refused(folder: Path) -> None:
    with pytest.raises(NotImplementedError, match="generate with `paceline generate`"):
        _model(folder)(tokens(4)[None], use_cache=True)


def test_tiers_are_for_models_with_kv(folder: Path) -> None:
    plan = Blueprint.read(folder)
    if "hybrid" in folder.name:
        assert plan.kv_shape == (2, 8) and plan.kv_layers(0, 3) == 1
    else:
        with pytest.raises(ModelFolderError, match="run the model without tiers"):
            _ = plan.kv_shape
