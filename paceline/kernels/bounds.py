"""Bounds of a query's scores against keys that were not read, and of the log of the sum of e to the scores.

Of a block with keys k_b, box [m, M], mean c and radius r (`Summaries`), u and l the upper and lower bound of a score:

- box (Quest, Tang et al., ICML 2024): q.k <= sum_j max(q_j m_j, q_j M_j);
- ball: q.k <= q.c + |q| r;
- chord: e^s is convex, so between l and u it lies under its chord, and as the mean of the scores is known,
  sum_b e^(s_b) <= n ((1 - w) e^l + w e^u) with w = (mu - l) / (u - l), mu = q.c;
- Jensen: sum_b e^(s_b) >= n e^mu, which is a good estimate too.

They hold for scores as a float32 kernel computes them, not only for exact ones: each bound is widened by a rounding
error that neither the kernel's dot product nor the bound's own can pass (Higham, Accuracy and Stability of Numerical
Algorithms, section 3.1: |error| <= D u sum_j |q_j k_j| to first order, u = 2^-24).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paceline.kernels.summaries import Summaries

__all__ = ["ROUNDING", "LogSumBounds", "ScoreBounds", "log_sum_bounds", "rounding_slack", "score_bounds"]

ROUNDING = 2.0**-18
"""Of a logarithm: covers the rounding of exponentials, of their sum, and of the logarithm itself."""


@dataclass(frozen=True, slots=True)
class ScoreBounds:
    """Of every row against every block, float32 `[H, M, N]`. A score that can't be bounded has infinite bounds."""

    lower_HMN: Tensor
    upper_HMN: Tensor
    mean_HMN: Tensor
    """The mean of the scores."""
    slack_HMN: Tensor
    """How far off, by rounding, the mean may be. Lower and upper bound are widened by it already."""


@dataclass(frozen=True, slots=True)
class LogSumBounds:
    """Bounds of the log of a block's sum of e to the scores, float32 `[H, M, N]`; -inf of a block without keys."""

    lower_HMN: Tensor
    upper_HMN: Tensor


@torch.no_grad()
def score_bounds(q_HMD: Tensor, summaries: Summaries, scale: float) -> ScoreBounds:
    """Bounds of `scale * q.k` over the keys of each block, by box and ball, whichever is tighter. Query head h reads
    key head h // (H / G)."""
    heads, rows, width = q_HMD.shape
    count, shared = summaries.radius_NG.shape
    # A negative scale is a query of the other sign.
    q_GXD = (q_HMD.to(torch.float32) * scale).reshape(shared, -1, width)
    # In double precision, as squares of float32 pass its range. What then rounds to 0 is less than what slack adds.
    norm_GX1 = q_GXD.double().norm(dim=2, keepdim=True).float() * (1 + 2.0**-20)
    minimum_GDN, maximum_GDN, mean_GDN = (
        part.permute(1, 2, 0) for part in (summaries.minimum_NGD, summaries.maximum_NGD, summaries.mean_NGD)
    )
    positive_GXD, negative_GXD = q_GXD.clamp(min=0.0), q_GXD.clamp(max=0.0)
    upper_GXN = torch.baddbmm(positive_GXD @ maximum_GDN, negative_GXD, minimum_GDN)
    lower_GXN = torch.baddbmm(positive_GXD @ minimum_GDN, negative_GXD, maximum_GDN)
    mean_GXN = q_GXD @ mean_GDN
    ball_GXN = norm_GX1 * summaries.radius_NG.t()[:, None]
    slack_GXN = rounding_slack(norm_GX1, summaries.reach_NG, width)
    upper_GXN = torch.minimum(upper_GXN, mean_GXN + ball_GXN) + slack_GXN
    lower_GXN = torch.maximum(lower_GXN, mean_GXN - ball_GXN) - slack_GXN
    # Infinity minus infinity is no bound.
    return ScoreBounds(
        lower_GXN.nan_to_num_(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).view(heads, rows, count),
        upper_GXN.nan_to_num_(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf).view(heads, rows, count),
        mean_GXN.view(heads, rows, count),
        slack_GXN.view(heads, rows, count),
    )


@torch.no_grad()
def log_sum_bounds(q_HMD: Tensor, summaries: Summaries, scale: float) -> LogSumBounds:
    """Bounds of each block's part of the log-sum-exp: Jensen from below, the chord from above."""
    scores = score_bounds(q_HMD, summaries, scale)
    log_count_N = torch.log(summaries.count_N)
    lower_HMN = log_count_N + (scores.mean_HMN - scores.slack_HMN) - ROUNDING
    width_HMN = scores.upper_HMN - scores.lower_HMN
    weight_HMN = ((scores.mean_HMN + scores.slack_HMN - scores.lower_HMN) / width_HMN).nan_to_num_(1.0).clamp_(0.0, 1.0)
    chord_HMN = torch.log((1.0 - weight_HMN) * torch.exp(-width_HMN) + weight_HMN)
    upper_HMN = log_count_N + (scores.upper_HMN + chord_HMN) + ROUNDING
    # No score is above the upper bound, whatever became of the chord.
    upper_HMN = torch.where(torch.isnan(upper_HMN), log_count_N + scores.upper_HMN + ROUNDING, upper_HMN)
    absent_N = summaries.count_N == 0
    return LogSumBounds(
        lower_HMN.nan_to_num_(nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf).masked_fill_(absent_N, -torch.inf),
        upper_HMN.nan_to_num_(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf).masked_fill_(absent_N, -torch.inf),
    )


def rounding_slack(norm_GX1: Tensor, reach_NG: Tensor, width: int) -> Tensor:
    """By how much `[G, X, N]` a float32 kernel's score, and one computed here, may be off together: for queries of
    these norms, scale included, and keys no longer than `reach_NG`."""
    # D products and sums here, as many in the kernel, some operations more, and half of it to spare. What is too small
    # for float32 is nothing to a score.
    return norm_GX1 * (reach_NG.t()[:, None] * (6 * (width + 8) * 2.0**-24)) + 1e-30
