"""TimeLens' offline difficulty sampling (arXiv:2512.14698; released training/data/grounding.py).

Queries pass a filter, the model that is to be trained answers each once, greedily, and the harder ones are drawn more often, bucket by
bucket of video duration. When the model changes (SFT before RL), the answers and the draw must be made again.
"""

from collections.abc import Sequence

import numpy as np

from mmrl.seeding import stream

BUCKET_EDGES_S = (30.0, 60.0, 90.0, 120.0, 150.0, 180.0, 210.0, 240.0)
"""Seconds. Nine buckets: up to the first edge, between neighbours, above the last; a duration on an edge belongs to the bucket below."""

NUM_BINS = 20
"""Equal bins of overlap on [0, 1]."""

MIN_DURATION_S, MAX_DURATION_S, MAX_WORDS = 5.0, 500.0, 200

SOUND_WORDS = frozenset(
    ("audible", "audio", "hear", "heard", "hearing", "hears", "noise", "noises", "sound", "sounded", "sounding", "sounds")
)
"""A query with one of these words asks for what frames do not show."""


def reason_to_drop(query: str, span_s: tuple[float, float], duration_s: float) -> str | None:
    """Why TimeLens' filter drops an annotation, in words; None = it stays.

    `span_s`: true [start, end] in seconds, 0 <= start <= end <= `duration_s`. NaN fails every check.
    """
    if not MIN_DURATION_S <= duration_s <= MAX_DURATION_S:
        return f"the video lasts {duration_s:g} s, not {MIN_DURATION_S:g} to {MAX_DURATION_S:g}"
    words = query.lower().split()
    if len(words) > MAX_WORDS:
        return f"the query has {len(words)} words, more than {MAX_WORDS}"
    if not 0 <= span_s[0] <= span_s[1] <= duration_s:
        return f"the span {span_s[0]:g} to {span_s[1]:g} s is not inside the video's {duration_s:g} s"
    sound = sorted(SOUND_WORDS.intersection(word.strip(".,;:!?\"'()") for word in words))
    return f"the query is about sound: {sound[0]!r}" if sound else None


def span_of_no_answer(duration_s: float) -> tuple[float, float]:
    """What stands for an answer that could not be parsed: a span behind the end, so that it overlaps with nothing."""
    return duration_s + 10.0, duration_s + 20.0


def difficulty_weights(overlaps: Sequence[float] | np.ndarray, *, mean: float = 0.05, std: float = 0.2) -> np.ndarray:
    """Chance of each item, float64 [N], sum 1: a Gaussian over its overlap divided by how many items share its bin.

    w = exp(-½ ((IoU - mean) / std)²) / (items in the bin + 1e-6), so the draw follows the Gaussian, not the data's own distribution.
    The released code puts the mean 0.05 on the overlap (difficulty 1 - IoU of about 0.95); the paper writes it over the difficulty.
    `overlaps`: temporal IoU of the model's answer with the truth, [0, 1]. An overlap on a bin's edge falls where float rounding puts it.
    """
    values = _overlaps(overlaps)
    if not len(values):
        return values
    bins = np.minimum(np.digitize(values, np.linspace(0, 1, NUM_BINS + 1)) - 1, NUM_BINS - 1)
    weights = np.exp(-0.5 * ((values - mean) / std) ** 2) / (np.bincount(bins, minlength=NUM_BINS)[bins] + 1e-6)
    return weights / weights.sum()


def duration_buckets(durations_s: Sequence[float] | np.ndarray) -> np.ndarray:
    """int64 [N], 0 to 8: 0–30, 30–60, …, 210–240, above 240 s. ValueError for a duration that is not finite and > 0."""
    values = np.asarray(durations_s, np.float64)
    if values.ndim != 1 or not ((values > 0) & np.isfinite(values)).all():
        raise ValueError(f"durations_s must be finite seconds > 0, one per item; got {values!r}")
    return np.searchsorted(BUCKET_EDGES_S, values, side="left").astype(np.int64)


def bucket_target(target_size: int) -> int:
    """Items drawn per bucket, int(target / 9): 277 for 2500 (so 2493 in all), 3333 for 30000 (29997)."""
    if target_size < len(BUCKET_EDGES_S) + 1:
        raise ValueError(f"target_size must be at least {len(BUCKET_EDGES_S) + 1}, one per duration bucket; got {target_size}")
    return target_size // (len(BUCKET_EDGES_S) + 1)


def sample_by_difficulty(
    overlaps: Sequence[float] | np.ndarray, durations_s: Sequence[float] | np.ndarray, target_size: int, *, seed: int
) -> np.ndarray:
    """Which items to train on: int64 [M], rising, M <= target_size.

    From each duration bucket `bucket_target(target_size)` items without replacement, each next one in proportion to
    `difficulty_weights` of the bucket; a bucket with fewer gives all it has. The draw is a function of seed and of the items' order.
    """
    values, buckets, wanted = _overlaps(overlaps), duration_buckets(durations_s), bucket_target(target_size)
    if len(values) != len(buckets):
        raise ValueError(f"one duration per overlap is needed; got {len(values)} overlaps and {len(buckets)} durations")
    chosen = []
    for bucket in range(len(BUCKET_EDGES_S) + 1):
        items = np.flatnonzero(buckets == bucket)
        # The `wanted` first arrivals of exponential clocks with rates w: drawing one by one in proportion to w, all at once.
        arrivals = stream(seed, "difficulty", bucket).exponential(size=len(items)) / difficulty_weights(values[items])
        chosen.append(items[np.argsort(arrivals, kind="stable")[:wanted]])
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def _overlaps(overlaps: Sequence[float] | np.ndarray) -> np.ndarray:
    values = np.asarray(overlaps, np.float64)
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"overlaps must be numbers in [0, 1], one per item (an answer that cannot be parsed: 0); got {values!r}")
    return values
