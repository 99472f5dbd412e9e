"""What an answer that sees nothing earns under the video rewards: subtract it from a curve before calling it learning.

The three VideoSSR tasks have known distributions, so their baselines are exact; for annotated spans there is a search.
"""

from collections.abc import Sequence
from math import inf

import numpy as np

from rewards.spans import Span
from rewards.videossr import count_credit


def best_constant_span(
    spans: Sequence[Span] | np.ndarray, horizon: float, *, grid: int = 48, weights: Sequence[float] | None = None
) -> tuple[Span, float]:
    """The one span that has the highest mean temporal IoU with all of `spans`, and that mean.

    Args:
        spans: [N, 2] true spans in any one unit. In seconds the guess knows nothing; as shares of each video's duration (horizon 1) it
            knows how long the video is, which is the stronger baseline.
        horizon: latest end; the guess's ends are multiples of horizon / grid.
        grid: steps. With horizon = grid = number of frames the answer is exact for spans of whole frames.
        weights: one per span, default all alike.
    """
    truth = np.asarray(spans, np.float64)
    if truth.ndim != 2 or truth.shape[1] != 2 or not len(truth) or not np.isfinite(truth).all() or (truth[:, 0] > truth[:, 1]).any():
        raise ValueError(f"spans must be [N, 2] with start <= end and at least one; got shape {truth.shape}")
    if grid < 1 or not 0 < horizon < inf:
        raise ValueError(f"need grid >= 1 and a finite horizon > 0; got {grid} and {horizon}")
    shares = np.ones(len(truth)) if weights is None else np.asarray(weights, np.float64)
    if shares.shape != (len(truth),) or (shares < 0).any() or not shares.sum() > 0:
        raise ValueError(f"weights must be {len(truth)} numbers >= 0 with a sum > 0; got {weights!r}")
    ticks = np.arange(grid + 1) * horizon / grid
    best: tuple[Span, float] = ((0.0, float(ticks[1])), -1.0)
    for i, start in enumerate(ticks[:-1]):
        ends = ticks[i + 1 :, None]
        overlap = np.maximum(np.minimum(ends, truth[:, 1]) - np.maximum(start, truth[:, 0]), 0.0)
        hull = np.maximum(ends, truth[:, 1]) - np.minimum(start, truth[:, 0])
        means = (overlap / hull) @ shares / shares.sum()
        if means.max() > best[1]:
            at = int(means.argmax())
            best = ((float(start), float(ends[at, 0])), float(means[at]))
    return best


def grounding_baseline(num_frames: int = 48, shortest: int = 8, longest: int = 16) -> tuple[tuple[int, int], float]:
    """Best constant guess, as frames [start, end), and its mean temporal IoU, when the perturbed length is uniform in shortest..longest and
    its place uniform among those that fit. 48 frames: [10, 38), 0.3060."""
    if not 1 <= shortest <= longest <= num_frames:
        raise ValueError(f"need 1 <= shortest <= longest <= num_frames; got {shortest}, {longest}, {num_frames}")
    places = [(start, length) for length in range(shortest, longest + 1) for start in range(num_frames - length + 1)]
    spans = [(start, start + length) for start, length in places]
    (start, end), mean = best_constant_span(
        spans, num_frames, grid=num_frames, weights=[1 / (num_frames - length + 1) for _, length in places]
    )
    return (round(start), round(end)), mean


def counting_baseline(most: int = 3) -> tuple[int, float]:
    """Best constant guess of one shape's total and its mean credit, when 1..most frames have 1..most instances each, all uniform.
    3 (easy): 3, 0.5831. 4 (hard): 5, 0.5480. The answer with that guess for all three shapes earns the same."""
    if most < 1:
        raise ValueError(f"most must be at least 1; got {most}")
    one = np.r_[0.0, np.full(most, 1 / most)]
    total, frames = np.zeros(most * most + 1), np.ones(1)
    for _ in range(most):
        frames = np.convolve(frames, one)
        total[: len(frames)] += frames / most
    credits = [sum(p * count_credit(guess, truth) for truth, p in enumerate(total)) for guess in range(len(total))]
    return int(np.argmax(credits)), float(max(credits))


def jigsaw_baseline(clips: int = 6) -> float:
    """Mean reward of a random order, and of any constant one, of `clips` clips: 1 - ((n² - 1) / 3) / (n² // 2). 6: 0.3519; 8: 0.34375."""
    if clips < 2:
        raise ValueError(f"clips must be at least 2; got {clips}")
    return 1.0 - (clips**2 - 1) / 3 / (clips**2 // 2)
