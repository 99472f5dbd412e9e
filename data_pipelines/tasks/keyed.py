"""What every endless generator is built on: draws by key, splits by hash, and numbers dealt to buckets. Whole numbers only.

Randomness is SHAKE-256 of a key, read as 32-bit words, so the same key gives the same task on every machine and with every library
version.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from hashlib import shake_256
from itertools import count
from struct import unpack
from typing import Literal

from mmrl.errors import TaskError
from mmrl.seeding import digest
from mmrl.types import TaskKey

SEED_CLASSES = 64
"""Seeds that differ modulo this never share an item."""
TEST_SHARE = 4
"""One layout in this many belongs to the test split."""
LARGEST_BLOCK = 10_000
"""Longest block of tasks that `dealt_key` divides by the weights as written."""

Draw = Callable[[], int]


def words(key: bytes) -> Iterator[int]:
    """Endless uniform 32-bit integers, a pure function of `key`. `next() * n >> 32` is below n, off uniform by less than n / 2**32."""
    for block in count():
        yield from unpack("<34I", shake_256(key + block.to_bytes(4, "little")).digest(136))


def shuffle(items: list, draw: Draw) -> None:
    """In place, every order equally likely."""
    for i in range(len(items) - 1, 0, -1):
        j = draw() * (i + 1) >> 32
        items[i], items[j] = items[j], items[i]


def split_of(layout: int) -> Literal["train", "test"]:
    """The split that owns a layout, from its 64-bit hash."""
    return "train" if (layout >> 32) % TEST_SHARE else "test"


def check_weights(name: str, weights: Sequence[float], buckets: Sequence[str]) -> None:
    """TaskError, opening with `name`, unless the weights are empty or one finite number >= 0 a bucket, not all 0."""
    sound = len(weights) == len(buckets) and all(0 <= weight < math.inf for weight in weights) and any(weights)
    if weights and not sound:
        raise TaskError(f"{name}: weights={weights}: give {len(buckets)} finite numbers >= 0, not all 0, one for each of {tuple(buckets)}")


def dealt_key(name: str, buckets: Sequence[str], weights: Sequence[float], split: str, seed: int, index: int) -> TaskKey:
    """Deal a global index (0, 1, ...) to a bucket, so that each block of tasks holds the `weights` by largest remainder.

    The block is the shortest one that the weights, as written in decimals, divide without remainder: for 0.5, 0.3, 0.2 it is 10 tasks.
    Past LARGEST_BLOCK it is 1,000 tasks instead. The order inside a block is random. No weights are equal ones.
    """
    if index < 0:
        raise ValueError(f"index must be >= 0; got {index}")
    counts = block_counts(tuple(weights) or (1.0,) * len(buckets))
    block, place = divmod(index, sum(counts))
    which, rank = _dealt(name, counts, split, seed, block)[place]
    return TaskKey(buckets[which], block * counts[which] + rank)


@lru_cache(maxsize=64)
def block_counts(weights: tuple[float, ...]) -> tuple[int, ...]:
    """Tasks of each bucket in one block (see dealt_key)."""
    exact = [Fraction(str(weight)) for weight in weights]
    total = sum(exact)
    shares = [weight / total for weight in exact]
    block = math.lcm(*(share.denominator for share in shares))
    if block > LARGEST_BLOCK:
        block = 1000
    counts = [math.floor(share * block) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: (counts[i] - shares[i] * block, i))
    for i in by_remainder[: block - sum(counts)]:
        counts[i] += 1
    return tuple(counts)


@lru_cache(maxsize=4)
def _dealt(name: str, counts: tuple[int, ...], split: str, seed: int, block: int) -> tuple[tuple[int, int], ...]:
    """The (bucket, rank in it) of each place of a block, in random order."""
    deck = [(which, rank) for which, count in enumerate(counts) for rank in range(count)]
    shuffle(deck, words(digest(f"{name} key", split, seed, block).to_bytes(16, "little")).__next__)
    return tuple(deck)
