import logging
import warnings

import numpy as np
import pytest
import torch
from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor, Qwen3VLVideoProcessor

from mmrl.models import patchify
from mmrl.models.patchify import Patchify, VisionInput

FAMILIES = {
    "qwen2_5_vl picture": Qwen2VLImageProcessor(),
    "qwen3_vl picture": Qwen2VLImageProcessor(patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3),
    "qwen2_5_vl clip": Qwen2VLVideoProcessor(cap_pixels_per_frame=False),
    "qwen3_vl clip": Qwen3VLVideoProcessor(cap_pixels_per_frame=False),
}
PICTURES, CLIPS = list(FAMILIES)[:2], list(FAMILIES)[2:]


def random_frames(*shape):
    return np.random.default_rng(shape).integers(0, 256, (*shape, 3), np.uint8)


def by_processor(processor, frames, **settings):
    """Rows and grid, as transformers makes them."""
    pixels = torch.from_numpy(frames.copy()).permute(0, 3, 1, 2).contiguous()
    if isinstance(processor, Qwen2VLImageProcessor):
        out = processor(images=[pixels[0]], return_tensors="pt", **settings)
        return out["pixel_values"].numpy(), out["image_grid_thw"].numpy()
    out = processor(videos=[pixels], do_sample_frames=False, return_tensors="pt", **settings)
    return out["pixel_values_videos"].numpy(), out["video_grid_thw"].numpy()


def assert_same_bits(got, expected):
    for one, other in zip(got, expected, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("blocks", [(1, 1), (1, 5), (4, 1), (3, 7), (11, 6)])
@pytest.mark.parametrize(("name", "count"), [(name, 1) for name in PICTURES] + [(name, n) for name in CLIPS for n in (1, 2, 3, 8, 9)])
def test_rows_are_those_of_the_processor_bit_for_bit(name, count, blocks):
    processor = FAMILIES[name]
    frames = random_frames(count, *(side * 2 * processor.patch_size for side in blocks))
    rows, grid = VisionInput.of(processor).patchify(frames)
    assert_same_bits((rows, np.array([grid])), by_processor(processor, frames, do_resize=False))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_level_of_every_channel_has_the_processors_value(name):
    processor = FAMILIES[name]
    side = 2 * processor.patch_size * 4
    levels = np.arange(side * side, dtype=np.int64).reshape(1, side, side, 1) + np.array([0, 85, 170])
    frames = (levels % 256).astype(np.uint8)
    assert all(len(np.unique(frames[..., channel])) == 256 for channel in range(3))
    assert_same_bits(VisionInput.of(processor).patchify(frames)[:1], by_processor(processor, frames, do_resize=False)[:1])


@pytest.mark.parametrize(
    ("name", "shape"),
    [(name, (1, *size)) for name in PICTURES for size in [(50, 131), (20, 30), (480, 640), (900, 1400), (56, 84)]]
    + [(name, shape) for name in CLIPS for shape in [(4, 50, 131), (3, 240, 321), (2, 30, 40), (5, 700, 1000)]],
)
def test_frames_of_another_size_are_resized_as_the_processor_resizes_them(name, shape):
    processor, frames = FAMILIES[name], random_frames(*shape)
    assert_same_bits(VisionInput.of(processor)(frames), by_processor(processor, frames))


@pytest.mark.parametrize("budget", [{"cap_pixels_per_frame": True}, {"size": {"shortest_edge": 4 * 28 * 28, "longest_edge": 20 * 28 * 28}}])
def test_the_processors_own_budget_is_kept(budget):
    processor = Qwen2VLVideoProcessor(**{"cap_pixels_per_frame": False, **budget})
    frames = random_frames(6, 300, 400)
    assert_same_bits(VisionInput.of(processor)(frames), by_processor(processor, frames))


def test_a_size_set_later_counts():
    processor = Qwen2VLImageProcessor()
    make = VisionInput.of(processor)
    processor.size = {"shortest_edge": 4 * 28 * 28, "longest_edge": 6 * 28 * 28}
    assert make(random_frames(1, 280, 280))[1].tolist() == [[1, 4, 4]]  # 2 x 2 blocks of 28: 3 x 3 are more than 6


def test_frames_of_the_wanted_size_are_not_touched_before_they_are_patched():
    frames = random_frames(4, 280, 364)
    make = VisionInput.of(FAMILIES["qwen2_5_vl clip"])
    assert np.shares_memory(make._resized(frames), frames)
    assert not np.shares_memory(make._resized(frames[:, :100]), frames)


def test_order_of_rows_and_values_by_hand():
    """Two frames of 2 x 4 pixels, patches of one pixel, blocks of 2 x 2. Level = 100 * frame + 10 * pixel + channel."""
    level = 100 * np.arange(2)[:, None, None, None] + 10 * np.arange(8).reshape(1, 2, 4, 1) + np.arange(3)
    one = np.ones(3, np.float32)
    rows, grid = Patchify(1, 2, 2, mean=0 * one, std=one)(level.astype(np.uint8))
    assert grid == (1, 2, 4)
    assert rows[:, 0].tolist() == [0, 10, 40, 50, 20, 30, 60, 70]  # the left block line by line, then the right one
    assert rows[1].tolist() == [10, 110, 11, 111, 12, 112]  # red of both frames, green, blue
    assert rows.dtype == np.float32


def test_mean_and_deviation_are_each_channels_own():
    """(10 - 4) / 2, (10 - 2) / 4, (10 - 10) / 1."""
    mean, std = (np.array(values, np.float32) for values in ((4, 2, 10), (2, 4, 1)))
    rows, _ = Patchify(1, 1, 1, mean, std)(np.full((1, 1, 1, 3), 10, np.uint8))
    assert rows.tolist() == [[3, 2, 0]]


def test_a_group_that_is_not_full_repeats_its_last_frame():
    make = VisionInput.of(FAMILIES["qwen2_5_vl clip"]).patchify
    frames = random_frames(5, 56, 84)
    np.testing.assert_array_equal(make(frames)[0], make(frames[[0, 1, 2, 3, 4, 4]])[0])
    one = np.ones(3, np.float32)
    rows, grid = Patchify(1, 1, 4, mean=0 * one, std=one)(np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1) * np.ones(3, np.uint8))
    assert grid == (2, 1, 1)
    assert rows[:, :4].tolist() == [[0, 1, 2, 3], [4, 5, 5, 5]]


def test_frames_may_be_any_view_and_read_only():
    """The frame cache maps its files read-only; torch would warn of it."""
    frames = random_frames(4, 112, 168)
    expected = VisionInput.of(FAMILIES["qwen2_5_vl clip"])(frames)
    locked = frames.copy()
    locked.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same_bits(VisionInput.of(FAMILIES["qwen2_5_vl clip"])(locked), expected)
    reversed_twice = np.ascontiguousarray(frames[::-1, :, ::-1])[::-1, :, ::-1]
    rows, _ = VisionInput.of(FAMILIES["qwen2_5_vl clip"]).patchify(reversed_twice)
    np.testing.assert_array_equal(rows, VisionInput.of(FAMILIES["qwen2_5_vl clip"]).patchify(frames)[0])


@pytest.mark.parametrize("size", [(28, 30), (42, 56)])
def test_sides_must_be_multiples_of_a_block(size):
    with pytest.raises(ValueError, match=rf"height and width must be multiples of 28; got {size[0]} x {size[1]}"):
        VisionInput.of(FAMILIES["qwen2_5_vl clip"]).patchify(random_frames(2, *size))


class _Inverted(Qwen2VLVideoProcessor):
    def rescale_and_normalize(self, images, *args):
        return -super().rescale_and_normalize(images, *args)


@pytest.mark.parametrize(
    ("processor", "reason"),
    [
        (_Inverted(cap_pixels_per_frame=False), "_Inverted is not one of"),
        (Qwen2VLVideoProcessor(cap_pixels_per_frame=False, do_normalize=False), "does not rescale and normalise"),
        (Qwen2VLImageProcessor(do_rescale=False), "does not rescale and normalise"),
    ],
)
def test_what_is_not_known_goes_through_the_processor_and_the_log_says_so_once(processor, reason, caplog, monkeypatch):
    monkeypatch.setattr(patchify, "_told", set())
    frames = random_frames(1 if isinstance(processor, Qwen2VLImageProcessor) else 3, 280, 364)
    with caplog.at_level(logging.WARNING, logger=patchify.__name__):
        for _ in range(2):
            assert_same_bits(VisionInput.of(processor)(frames), by_processor(processor, frames))
    assert [reason in record.message for record in caplog.records] == [True]
