"""Randomness by key. The same key gives the same stream on any machine; keys that differ in any part share nothing."""

import hashlib

import numpy as np

Key = str | int | float | bool


def digest(*key: Key) -> int:
    """128-bit integer from the whole key; types and borders count, so ("a", 1), ("a1",) and ("a", "1") all differ."""
    text = "\x1f".join(f"{type(part).__name__}:{part!r}" for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def stream(*key: Key) -> np.random.Generator:
    """Generator for one purpose, e.g. `stream(seed, "sampling", task_id, step)`."""
    return np.random.Generator(np.random.PCG64(digest(*key)))
