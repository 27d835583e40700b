"""How many cold blocks can attention leave out, proven or by the profile, and what does it cost to attend to blocks?

Sections: `synthetic`, `hostile` and `model` (what bounds on the keys prove, on synthetic keys, on keys made to mislead
and on those of the embedded model, beside what the profile would leave out at the same measured error and what an
oracle could), `formats` (the error of lossy KV), `paged` (attention over blocks against torch's own over the same KV in
one piece).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from attended import FAMILIES, Step, captured, model_steps, synthetic_steps
from harness import Bench, BenchError, Table, options, say
from torch import Tensor

from paceline.kernels.bounds import LogSumBounds, log_sum_bounds
from paceline.kernels.key_codes import coded_log_sum_bounds
from paceline.kernels.paged_attention import paged_attention
from paceline.kernels.quantise import Axis, measured_error, pack, unpack
from paceline.tiers.profile import Profile
from paceline.tiers.selection import prove

KINDS = ("summaries", "4 bits", "8 bits")
EPSILONS = (0.001, 0.01, 0.05)
HOT = 0.25
"""Share of the blocks that lie in hbm: the first one and the latest."""
ROUND = 8
"""Blocks that the first round of proving reads at most; each one may read twice as many as the one before."""
REFRESH = 8
"""Steps between two looks of the profile."""
FLOORS = np.concatenate([[0.0], np.logspace(-10, -0.3, 120)])


@dataclass(slots=True)
class Score:
    """Sums over the steps of one kind of keys, by one kind of bounds at one epsilon."""

    heads: int = 0
    cold: int = 0
    left_out: int = 0
    bound: float = 0.0
    largest: float = 0.0
    total: float = 0.0

    def take(self, cold: int, omitted_H: np.ndarray, left_out: int, bound: float) -> None:
        self.heads += len(omitted_H)
        self.cold += cold
        self.left_out += left_out
        self.bound = max(self.bound, bound)
        self.largest = max(self.largest, float(omitted_H.max()))
        self.total += float(omitted_H.sum())

    @property
    def mean(self) -> float:
        return self.total / max(1, self.heads)

    @property
    def share(self) -> float:
        return self.left_out / max(1, self.cold)


@dataclass(slots=True)
class Profiled:
    """What the profile leaves out at each of many floors; the mass of its steps is averaged over heads."""

    cold: int = 0
    heads: int = 0
    left_out: np.ndarray = field(default_factory=lambda: np.zeros(len(FLOORS)))
    total: np.ndarray = field(default_factory=lambda: np.zeros(len(FLOORS)))
    largest: np.ndarray = field(default_factory=lambda: np.zeros(len(FLOORS)))

    def take(self, guess_N: np.ndarray, mass_HN: np.ndarray) -> None:
        order = np.argsort(guess_N, kind="stable")
        known = np.cumsum(guess_N[order])
        count_F = np.searchsorted(known, FLOORS, side="right")
        omitted_HF = np.pad(np.cumsum(mass_HN[:, order], axis=1), ((0, 0), (1, 0)))[:, count_F]
        self.cold += len(guess_N)
        self.heads += len(mass_HN)
        self.left_out += count_F
        self.total += omitted_HF.sum(axis=0)
        self.largest = np.maximum(self.largest, omitted_HF.max(axis=0))

    def at(self, mean: float) -> tuple[float, float]:
        """Share of the cold blocks left out, and the largest mass of a head and step, at this mean mass at most."""
        fits = np.flatnonzero(self.total / max(1, self.heads) <= mean)
        best = int(fits[-1]) if len(fits) else 0
        return float(self.left_out[best]) / max(1, self.cold), float(self.largest[best])


def score(steps: Iterator[Step]) -> tuple[dict[tuple[str, float], Score], dict[float, int], Profiled]:
    """Prove by each kind of bounds, and measure what would be left out; then what an oracle and the profile would."""
    scores = {(kind, epsilon): Score() for kind in KINDS for epsilon in EPSILONS}
    oracle, by_profile = dict.fromkeys(EPSILONS, 0), Profiled()
    profiles: dict[int, Profile] = {}
    for step in steps:
        count = len(step.counts_N)
        recent = max(1, round(HOT * count) - 1)
        cold_n = np.arange(1, count - recent)
        number_N = torch.arange(count)
        scale = step.q_HMD.shape[2] ** -0.5
        whole = paged_attention(
            step.q_HMD, step.keys_NGBD, step.keys_NGBD, number_N, number_N * step.keys_NGBD.shape[2], step.counts_N,
            10**9, scale, keep_blocks=True,
        )  # fmt: skip
        lse_HN = whole.block_lse_HMN[:, 0].double()
        mass_HN = lse_HN.softmax(1).numpy()
        index_n = torch.from_numpy(cold_n)
        coded = [coded_log_sum_bounds(step.q_HMD, codes.take(index_n), scale) for codes in step.codes]
        bounds = [log_sum_bounds(step.q_HMD, step.summaries.take(index_n), scale), *coded]
        for (kind, epsilon), into in scores.items():
            left_n, bound = prove_in_rounds(bounds[KINDS.index(kind)], lse_HN, cold_n, epsilon)
            into.take(len(cold_n), mass_HN[:, left_n].sum(axis=1), len(left_n), bound)
        for epsilon in EPSILONS:
            oracle[epsilon] += _oracle(mass_HN[:, cold_n], epsilon)
        profile = profiles.setdefault(step.stream, Profile())
        seen = profile.of(cold_n)
        by_profile.take(np.where(seen.seen > 0, seen.mass, np.inf), mass_HN[:, cold_n])
        if step.number % REFRESH == 0:
            profile.record(step.number, np.arange(count), mass_HN.mean(axis=0))
    return scores, oracle, by_profile


def prove_in_rounds(
    bounds: LogSumBounds, lse_HN: Tensor, cold_n: np.ndarray, epsilon: float
) -> tuple[np.ndarray, float]:
    """The blocks that are left out, and the bound of their mass. What a round reads adds its true log-sum-exp."""
    seen_N = np.ones(lse_HN.shape[1], dtype=bool)
    seen_N[cold_n] = False
    done_n = np.zeros(len(cold_n), dtype=bool)
    most = ROUND
    while True:
        lse_HM = lse_HN[:, torch.from_numpy(seen_N)].logsumexp(1, keepdim=True)
        selection = prove(bounds, lse_HM, epsilon, done_N=done_n, most=most)
        most *= 2
        done_n |= selection.read_N
        seen_N[cold_n[selection.read]] = True
        if selection.enough:
            return cold_n[~done_n], selection.bound


def _oracle(mass_HN: np.ndarray, epsilon: float) -> int:
    """How many blocks can be left out by who knows the masses, the lightest first."""
    order = np.argsort(mass_HN.max(axis=0))
    return int(np.searchsorted(np.cumsum(mass_HN[:, order], axis=1).max(axis=0), epsilon, side="right"))


def skip(bench: Bench, key: str, kinds: Sequence[tuple[str, Iterator[Step]]]) -> None:
    """A table of what can be left out."""
    rows, heads, worst = [], 0, 0.0
    for name, steps in kinds:
        say(f"{key}: {name}")
        scores, oracle, by_profile = score(steps)
        for epsilon in EPSILONS:
            found = [scores[kind, epsilon] for kind in KINDS]
            heads += found[0].heads if epsilon == EPSILONS[0] else 0
            largest = max(each.largest for each in found)
            worst = max(worst, largest / epsilon, *(each.bound / epsilon for each in found))
            same, most = by_profile.at(found[1].mean)
            wide, widest = by_profile.at(epsilon)
            rows.append(
                (
                    name, epsilon, found[0].heads, *(each.share for each in found), largest, found[1].mean, same, most,
                    wide, widest, oracle[epsilon] / found[0].cold,
                )
            )  # fmt: skip
            if largest > epsilon:
                raise BenchError(f"{name}: a head missed {largest} of its mass, but {epsilon} was allowed")
    columns = (
        "keys", "ε", "head-steps", *(f"by {kind}" for kind in KINDS), "mass, max", "mean", "profile 1", "max 1",
        "profile 2", "max 2", "oracle",
    )  # fmt: skip
    notes = (
        f"Shares of the cold blocks (16 tokens, {1 - HOT:.0%} of a sequence) that are left out. By: what is "
        "proven for every head from summaries, from keys at 4 bits, from keys at 8 bits, in rounds of "
        f"{ROUND}, {2 * ROUND}, {4 * ROUND}, ... blocks. mass: what a head measurably missed, the most in any of the "
        "three, and the mean with 4 bits. profile: what the profile, refreshed every "
        f"{REFRESH} steps, leaves out at that mean (1) or at a mean of ε (2), the floor "
        "chosen afterwards, and the most that a head then missed. oracle: who knows the masses, for every head.",
        f"{heads} head-steps for each ε and kind of bounds; in none did a head miss more than ε, nor was a bound above "
        f"it: the largest was {worst:.4f} ε.",
    )
    bench.add(key, Table(f"Cold blocks left out: {key} keys", columns, rows, notes))


def synthetic(bench: Bench) -> None:
    """Keys of five kinds."""
    steps = 20 if bench.options.quick else 1500
    skip(bench, "synthetic", [(family, synthetic_steps(family, steps)) for family in FAMILIES if family != "hostile"])


def hostile(bench: Bench) -> None:
    """Keys that are made to mislead: opposite pairs, some of them large, and queries that look elsewhere every step."""
    skip(bench, "hostile", [("hostile", synthetic_steps("hostile", 20 if bench.options.quick else 3300))])


def model(bench: Bench) -> None:
    """Keys of the embedded model."""
    files, every = (1, 24) if bench.options.quick else (4, 2)
    skip(bench, "model", [("held-out code", model_steps(files, every))])


def formats(bench: Bench) -> None:
    """Lossy KV: how far off keys, values and what attention makes of them are."""
    rows = []
    for layer, (q_HTD, keys_NGBD, values_NGBD) in enumerate(captured(1)[0]):
        count, _, block, width = keys_NGBD.shape
        number = torch.arange(count)
        rest = (number, number * block, torch.full((count,), block))
        start = count * block - 1
        q_HMD = q_HTD[:, start : start + 1]
        exact = paged_attention(q_HMD, keys_NGBD, values_NGBD, *rest, start, width**-0.5).out_HMD
        for bits in (8, 4, 2):
            keys, values = pack(keys_NGBD, bits, Axis.channel), pack(values_NGBD, bits, Axis.token)
            back = unpack(keys), unpack(values)
            lossy = paged_attention(q_HMD, *back, *rest, start, width**-0.5).out_HMD
            rows.append(
                (
                    layer, bits, (keys.nbytes + values.nbytes) / (keys_NGBD.nbytes + values_NGBD.nbytes),
                    measured_error(keys_NGBD, keys).relative, measured_error(values_NGBD, values).relative,
                    float((lossy - exact).norm() / exact.norm()),
                )
            )  # fmt: skip
    columns = ("layer", "bits", "bytes of float32's", "error of keys", "of values", "of the output")
    notes = ("Relative errors on the embedded model's KV of held-out code; all blocks lossy, which tiers never are.",)
    bench.add("formats", Table("KV at 8, 4 and 2 bits", columns, rows, notes))


def paged(bench: Bench) -> None:
    """The time of attention over blocks."""
    rows = []
    for count, heads, shared, width, rows_q in (
        (16, 3, 1, 64, 1), (64, 3, 1, 64, 1), (512, 3, 1, 64, 1), (256, 32, 8, 128, 1), (64, 3, 1, 64, 8),
        (64, 3, 1, 64, 64),
    ):  # fmt: skip
        generator = torch.Generator().manual_seed(count)
        keys, values = (torch.randn(count, shared, 16, width, generator=generator) for _ in range(2))
        q = torch.randn(heads, rows_q, width, generator=generator)
        number = torch.randperm(count, generator=generator)
        starts, counts = torch.arange(count) * 16, torch.full((count,), 16)
        start = count * 16 - rows_q
        flat = [held[number].transpose(0, 1).flatten(1, 2)[None].contiguous() for held in (keys, values)]
        seen = torch.arange(count * 16) <= torch.arange(start, start + rows_q)[:, None]

        def plain(q: Tensor = q, flat: list[Tensor] = flat, seen: Tensor = seen) -> object:
            if q.shape[1] == 1:
                grouped = q.view(1, flat[0].shape[1], -1, q.shape[2])
                return torch.nn.functional.scaled_dot_product_attention(grouped, *flat)
            return torch.nn.functional.scaled_dot_product_attention(q[None], *flat, attn_mask=seen, enable_gqa=True)

        arguments = (q, keys, values, number, starts, counts, start, width**-0.5)
        times = [
            _median_us(plain, bench.options.quick),
            _median_us(lambda a=arguments: paged_attention(*a, keep_blocks=True), bench.options.quick),
            _median_us(lambda a=arguments: paged_attention(*a, keep_blocks=False), bench.options.quick),
        ]
        rows.append((count, heads, shared, width, rows_q, *times, times[1] / times[0], times[2] / times[0]))
    columns = (
        "blocks", "heads", "KV heads", "D", "rows", "torch, µs", "blocks kept, µs", "not kept, µs", "ratio kept", "not",
    )  # fmt: skip
    notes = (
        "torch: scaled_dot_product_attention over the same KV in one piece. Blocks lie in random slots; kept: outputs "
        "of blocks are kept, so that any partition gives the same bits. Both give the log-sum-exp of every block.",
    )
    bench.add("paged", Table("Attention over blocks", columns, rows, notes))


@torch.inference_mode()
def _median_us(call: Callable[[], object], quick: bool) -> float:
    times = []
    for _ in range(5 if quick else 200):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times) * 1e6


def main() -> None:
    torch.set_num_threads(1)
    sections = {"synthetic": synthetic, "hostile": hostile, "model": model, "formats": formats, "paged": paged}
    given = options("How many cold blocks can attention leave out?", tuple(sections))
    bench = Bench("certified", "How many cold blocks can attention leave out?", given, "1")
    for name, run in sections.items():
        if given.wants(name):
            run(bench)
    bench.finish()


if __name__ == "__main__":
    main()
