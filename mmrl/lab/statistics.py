"""The few statistics that the lab needs, each with its answer for too few values and for ties."""

from collections.abc import Sequence

import numpy as np

from mmrl.advantages.baseline import SAME_REWARD

Interval = tuple[float, float]


def t_quantile(degrees: int) -> float:
    """t with 95 % of Student's distribution of `degrees` >= 1 degrees of freedom between -t and t: 12.706, 4.303, 3.182, ...

    With T = sqrt(degrees) tan(angle) the density of the angle is cos(angle)^(degrees - 1), so a sum over angles gives the quantile, here
    to six digits.
    """
    if degrees < 1:
        raise ValueError(f"degrees must be at least 1; got {degrees}")
    angle = np.linspace(0.0, np.pi / 2, 200_001)
    density = np.cos(angle) ** (degrees - 1)
    below = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return float(np.sqrt(degrees) * np.tan(np.interp(0.95, below / below[-1], angle)))


def t_interval(values: Sequence[float]) -> Interval | None:
    """95 % interval of the mean, mean -+ t * std / sqrt(n) with ddof = 1: right where seeds differ like draws of a normal distribution.
    None for fewer than two values. With two or three values it is wide, as it must be; a bootstrap over so few would be far too narrow."""
    if len(values) < 2:
        return None
    mean, half = np.mean(values), t_quantile(len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(mean - half), float(mean + half)


def ranks(values: np.ndarray) -> np.ndarray:
    """float64 [N]: 1 for the smallest; equal values share the mean of their ranks."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count - 1) / 2)[place]


def spearman(one: np.ndarray, other: np.ndarray) -> float | None:
    """Correlation of the two rank orders, in [-1, 1], ties sharing their mean rank; None where one side has only equal values."""
    a, b = (side - side.mean() for side in (ranks(one), ranks(other)))
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else None


def kendall(one: np.ndarray, other: np.ndarray) -> float | None:
    """Kendall's tau-b, in [-1, 1]: (agreeing - disagreeing pairs) / sqrt(pairs untied in one * pairs untied in other); None where one side
    has only equal values."""
    a, b = (np.sign(side[:, None] - side[None, :]) for side in (one.astype(np.float64), other.astype(np.float64)))
    scale = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / scale) if scale > 0 else None


def is_dead(rewards: np.ndarray) -> bool:
    """Whether a group teaches nothing: fewer than two rewards (NaN = none), or all equal as advantages see it (spread < 1e-8)."""
    scored = rewards[~np.isnan(rewards)].astype(np.float64)
    return len(scored) < 2 or float(np.ptp(scored)) < SAME_REWARD


def best(rewards: np.ndarray) -> set[int]:
    """Places of the highest reward, all that share it; empty if nothing was scored."""
    if np.isnan(rewards).all():
        return set()
    return set(np.flatnonzero(rewards == np.nanmax(rewards)).tolist())
