"""How tokens share the loss: lengths of completions -> one weight per token.

The loss is the sum over tokens of weight * per-token loss, nothing else, so these weights are the whole of what other
frameworks call the loss type or loss_agg_mode:

| here          | meaning                                  | elsewhere                                              |
|---------------|------------------------------------------|--------------------------------------------------------|
| token_mean    | sum of all tokens / number of all tokens | DAPO (arXiv:2503.14476); TRL dapo; verl token-mean     |
| sequence_mean | mean over rows of each row's token mean  | GRPO (arXiv:2402.03300), GSPO; TRL grpo; verl seq-mean-token-mean |
| sequence_sum  | mean over rows of each row's token sum   | verl seq-mean-token-sum                                |
| constant      | sum of all tokens / (rows * L_max)       | Dr. GRPO (arXiv:2503.20783); TRL dr_grpo               |

verl's seq-mean-token-sum-norm divides by L_max only and is `rows` times larger than `constant`: a learning rate or a
gradient clip tuned for one does not carry over to the other.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

Aggregation = Literal["token_mean", "sequence_mean", "sequence_sum", "constant"]


def token_weights(
    lengths: Sequence[int],
    counted: Sequence[bool] | None,
    aggregation: Aggregation,
    max_completion_length: int | None = None,
) -> list[np.ndarray]:
    """Weights float32 [lengths[i]] for every row i, each >= 0; under the two mean forms they sum to 1 over all rows.

    `lengths`: tokens that count, >= 1, for EVERY row of the update, all ranks and all micro-batches together: the
    denominators are global, and rows that are not forwarded (zero advantage) still belong in it. Where some tokens of a
    completion do not count (tool output), pass the number that do and put the weights at their places.
    `counted`: False drops a row (overlong filtering): its weights are 0 and it leaves every denominator. None = all count.
    `max_completion_length`: L_max of `constant`, the configured limit and not the longest row; unused by the others.
    If no row counts, all weights are 0.
    """
    if aggregation not in get_args(Aggregation):
        raise ValueError(f"aggregation must be one of {', '.join(get_args(Aggregation))}; got {aggregation!r}")
    if min(lengths, default=1) < 1:
        raise ValueError(f"lengths must be >= 1: a completion has at least its end token; got {min(lengths)} at row {np.argmin(lengths)}")
    if counted is not None and len(counted) != len(lengths):
        raise ValueError(f"counted must have one entry per row: {len(lengths)} rows, {len(counted)} entries")
    keep = np.ones(len(lengths), bool) if counted is None else np.asarray(counted, bool)
    sizes = np.asarray(lengths, np.float64)
    num_rows = max(int(keep.sum()), 1)  # at least 1: with nothing kept, every weight is 0 whatever it is divided by
    if aggregation == "token_mean":
        row_weights = np.full(len(lengths), 1.0 / max(sizes[keep].sum(), 1.0))
    elif aggregation == "sequence_mean":
        row_weights = 1.0 / (num_rows * sizes)
    elif aggregation == "sequence_sum":
        row_weights = np.full(len(lengths), 1.0 / num_rows)
    else:
        if max_completion_length is None or max_completion_length < 1:
            raise ValueError(f"aggregation constant divides by max_completion_length, which must be >= 1; got {max_completion_length}")
        row_weights = np.full(len(lengths), 1.0 / (num_rows * max_completion_length))
    return [np.full(n, weight, np.float32) for n, weight in zip(lengths, row_weights * keep, strict=True)]
