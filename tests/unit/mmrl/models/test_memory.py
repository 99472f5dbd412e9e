import threading

import numpy as np
import torch

from mmrl.models.memory import Memory


def place(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_memory_comes_back_when_the_last_view_is_gone():
    memory = Memory(most=10_000)
    first = memory.empty(1000)
    view, where = torch.from_numpy(first.reshape(10, 100))[3:], place(first)
    del first
    assert memory.idle == 0
    assert place(memory.empty(1000)) != where
    del view
    assert memory.idle >= 4000
    assert where in {place(array) for array in [memory.empty(1000), memory.empty(1000)]}


def test_arrays_that_live_share_nothing():
    memory = Memory(most=10_000)
    arrays = [memory.empty(100) for _ in range(5)]
    for n, array in enumerate(arrays):
        array[:] = n
    assert [set(array.tolist()) for array in arrays] == [{n} for n in range(5)]


def test_a_block_serves_sizes_down_to_half_its_own():
    memory = Memory(most=10_000)
    where = place(memory.empty(1000))
    assert memory.empty(499).size == 499
    assert memory.idle == 4000 + 499 * 4  # too short for that block: another one, which came back too
    half = memory.empty(500)
    assert (half.size, half.dtype, place(half)) == (500, np.float32, where)


def test_no_more_is_kept_than_was_said():
    memory = Memory(most=10_000)
    arrays = [memory.empty(1000) for _ in range(5)]
    del arrays
    assert memory.idle == 8000
    big = memory.empty(5000)
    del big
    assert memory.idle <= 10_000


def test_many_threads():
    memory, wrong = Memory(most=100_000), []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(300):
            array = memory.empty(int(rng.integers(10, 200)))
            array[:] = seed
            copy = array.copy()
            if not (copy == seed).all():
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_every_array_begins_at_a_multiple_of_64_bytes():
    memory = Memory(most=10_000)
    arrays = [memory.empty(size) for size in (1, 7, 100, 1001)]
    assert [place(array) % 64 for array in arrays] == [0] * 4
