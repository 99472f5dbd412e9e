import threading

import numpy as np
import pytest
import torch

from mmrl.models.memory import LEAST, Memory

SIZE = LEAST // 4
"""Values of the smallest array whose memory is used again."""


def place(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_memory_comes_back_when_the_last_view_is_gone():
    memory = Memory(most=4 * LEAST)
    first = memory.empty(SIZE)
    view, where = torch.from_numpy(first.reshape(2, -1))[1:], place(first)
    del first
    assert memory.idle == 0
    second = memory.empty(SIZE)
    assert place(second) != where
    del view
    assert memory.idle == LEAST
    assert place(memory.empty(SIZE)) == where


def test_arrays_that_live_share_nothing():
    memory = Memory(most=10 * LEAST)
    arrays = [memory.empty(SIZE) for _ in range(5)]
    for n, array in enumerate(arrays):
        array[:] = n
    assert [np.unique(array).tolist() for array in arrays] == [[n] for n in range(5)]


def test_a_block_serves_sizes_down_to_half_its_own():
    memory = Memory(most=10 * LEAST)
    where = place(memory.empty(4 * SIZE))
    short = memory.empty(2 * SIZE - 1)
    assert (short.size, memory.idle) == (2 * SIZE - 1, 4 * LEAST)  # too short for that block: another one
    half = memory.empty(2 * SIZE)
    assert (half.size, half.dtype, place(half)) == (2 * SIZE, np.float32, where)


def test_no_more_is_kept_than_was_said():
    memory = Memory(most=2 * LEAST)
    arrays = [memory.empty(SIZE) for _ in range(5)]
    del arrays
    assert memory.idle == 2 * LEAST
    big = memory.empty(3 * SIZE)
    del big
    assert memory.idle <= 2 * LEAST


def test_small_arrays_are_left_to_the_c_library():
    memory = Memory(most=LEAST)
    small = memory.empty(SIZE - 1)
    assert small.shape == (SIZE - 1,)
    del small
    assert memory.idle == 0


@pytest.mark.parametrize("size", [1, 7, 1001, SIZE, SIZE + 3])
def test_every_array_begins_at_a_multiple_of_64_bytes(size):
    memory = Memory(most=4 * LEAST)
    arrays = [memory.empty(size) for _ in range(3)]
    assert [place(array) % 64 for array in arrays] == [0] * 3


def test_many_threads():
    memory, wrong = Memory(most=6 * LEAST), []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(50):
            array = memory.empty(SIZE + int(rng.integers(0, SIZE)))
            array[:] = seed
            if not (array.copy() == seed).all():
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
