"""Which groups are worth an update."""

import numpy as np


def keep_group(success: np.ndarray, low: float | None = 0.0, high: float = 1.0) -> bool:
    """True if low < mean(success) < high, strictly: the group has both something to copy and something to avoid.

    DAPO's dynamic sampling (arXiv:2503.14476, eq. 11) with the defaults; EasyR1 has 0.01 and 0.99. `low` None = no lower bound.
    `success`: [G] in [0, 1]; NaN = not scored, left out. False when nothing was scored.
    """
    if not (0 if low is None else low) < high <= 1 or (low is not None and low < 0):
        raise ValueError(f"need 0 <= low < high <= 1; got low {low}, high {high}")
    scored = success[~np.isnan(success)]
    return bool(len(scored)) and (low is None or low < float(scored.mean())) and float(scored.mean()) < high
