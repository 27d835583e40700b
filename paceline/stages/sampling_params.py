"""How tokens of a session are chosen: temperature, top-k, top-p, repetition penalty, seed and coupling."""

from __future__ import annotations

from dataclasses import dataclass

from paceline.pipeline.speculation.window import Coupling

__all__ = ["GREEDY_BELOW", "SAMPLING_DEFAULTS", "SamplingParams"]

GREEDY_BELOW = 1e-5
"""A lower temperature takes the likeliest token. Logits divided by much less than this leave the range of float32, and
the difference of two infinite logits is not a number. At this temperature another token has no chance unless its logit
is within 1e-3 of the largest."""

_MOST = 2**31 - 1
_TEMPERATURE = 1e6
_PENALTY = 1e3

SAMPLING_DEFAULTS = {"temperature": 0.7, "top_k": 0.0, "top_p": 1.0, "repetition_penalty": 1.0}
"""What a generation draws with where nothing else is asked for."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens of a session are chosen. A `temperature` below `GREEDY_BELOW` takes the likeliest token; `top_k` 0,
    `top_p` 1 and `repetition_penalty` 1 change nothing. Raises `ValueError` where a value has no meaning."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    coupling: Coupling = Coupling.gumbel

    def __post_init__(self) -> None:
        wrong = [
            f"{name} is {value} but has to be {rule}"
            for name, value, rule, right in (
                ("temperature", self.temperature, "from 0 to 1e6", 0 <= self.temperature <= _TEMPERATURE),
                ("top_k", self.top_k, "from 0 (all tokens) to 2**31 - 1", 0 <= self.top_k <= _MOST),
                ("top_p", self.top_p, "above 0 and at most 1", 0 < self.top_p <= 1),
                (
                    "repetition_penalty",
                    self.repetition_penalty,
                    "from 0.001 to 1000",
                    1 / _PENALTY <= self.repetition_penalty <= _PENALTY,
                ),
                ("seed", self.seed, "from 0 to 2**64 - 1", 0 <= self.seed < 1 << 64),
            )
            if not right
        ]
        if wrong:
            raise ValueError("; ".join(wrong))

    def options(self) -> dict[str, float]:
        """Those that a session is drawn with, by name; its seed is its own."""
        return {name: float(getattr(self, name)) for name in SAMPLING_DEFAULTS}

    @property
    def effective_coupling(self) -> Coupling:
        """The coupling that is meant: where the temperature is below `GREEDY_BELOW` there is one token to take, and all
        couplings are `greedy`."""
        return Coupling.greedy if self.temperature < GREEDY_BELOW else self.coupling
