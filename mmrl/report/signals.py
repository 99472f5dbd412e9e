"""What a token can be coloured by. A new signal is one line in `SIGNALS`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mmrl.errors import MmrlError


@dataclass(frozen=True)
class Signal:
    key: str
    label: str
    columns: tuple[str, ...]
    """Columns of the rollouts file it is made of: list<float>, one value a token. It is offered where all of them are there."""
    scale: Literal["low", "high", "signed"]
    """What draws the eye: values far below zero, far above zero, or far from zero in two colours."""
    value: Callable[..., np.ndarray]
    """Of the columns, float64 [T] each -> float64 [T]."""


SIGNALS = (
    Signal("sampling_logps", "sampling log-prob (nats)", ("sampling_logps",), "low", lambda sampling_logps: sampling_logps),
    Signal("logps", "trainer's log-prob (nats)", ("logps",), "low", lambda logps: logps),
    Signal(
        "gap",
        "gap: trainer − sampling log-prob (nats)",
        ("logps", "sampling_logps"),
        "signed",
        lambda logps, sampling_logps: logps - sampling_logps,
    ),
    Signal(
        "dependence",
        "visual dependence: log-prob − log-prob under the view (nats)",
        ("logps", "view_logps"),
        "signed",
        lambda logps, view_logps: logps - view_logps,
    ),
    Signal("entropy", "entropy (nats)", ("entropy",), "high", lambda entropy: entropy),
)

COLUMNS = tuple(dict.fromkeys(column for signal in SIGNALS for column in signal.columns))


def token_signals(row: Mapping[str, Any], place: str) -> dict[str, list[float | None]]:
    """Signal key -> one value a token, None where it is not finite. Raises MmrlError, naming `place`, if a column's length is not
    that of row["tokens"]."""
    length = len(row["tokens"] or ())
    present: dict[str, np.ndarray] = {}
    for column in COLUMNS:
        values = row.get(column)
        if values is None or (not values and length):
            continue
        if len(values) != length:
            raise MmrlError(f"{place}: {column} has {len(values)} values for {length} tokens; the report needs one value a token")
        present[column] = np.array(values, np.float64)  # null becomes NaN
    return {
        signal.key: [_short(value) for value in signal.value(*(present[column] for column in signal.columns))]
        for signal in SIGNALS
        if all(column in present for column in signal.columns)
    }


def _short(value: float) -> float | None:
    """Three digits are enough to read and to colour, and a third of the bytes."""
    return float(f"{value:.3g}") if np.isfinite(value) else None
