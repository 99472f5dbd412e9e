import numpy as np
import pytest
import torch

from mmrl.models.positions import VisionLayout, mrope_positions

IMAGE, VIDEO = 7, 8
LAYOUT = VisionLayout(image_token_id=IMAGE, video_token_id=VIDEO, merge_size=2, tokens_per_second=2)
PAIRS = VisionLayout(image_token_id=IMAGE, video_token_id=VIDEO, merge_size=2, tokens_per_second=None, pair_marks=(5, 6))
"""Qwen3-VL: every frame pair is a grid of its own."""


def transformers_positions(model, parts, images, videos, seconds):
    """`get_rope_index` of the model itself for a prompt of (kind, tokens) parts; kind 0 text, 1 image, 2 video."""
    kinds = torch.tensor([[kind for kind, count in parts for _ in range(count)]])
    grids = {"image_grid_thw": torch.tensor(images) if images else None, "video_grid_thw": torch.tensor(videos) if videos else None}
    seconds = torch.tensor(seconds) if seconds else None
    return model.model.get_rope_index(torch.zeros_like(kinds), kinds, **grids, second_per_grid_ts=seconds)[0][:, 0].numpy()


def ours(parts, images, videos, seconds, layout=LAYOUT):
    ids = np.array([(0, IMAGE, VIDEO)[kind] for kind, count in parts for _ in range(count)])
    return mrope_positions(ids, layout, images, videos, seconds)


@pytest.mark.parametrize(
    ("parts", "images", "videos", "seconds"),
    [
        ([(0, 5)], [], [], []),
        ([(0, 3), (1, 6), (0, 4)], [(1, 4, 6)], [], []),
        ([(0, 3), (1, 6), (0, 2), (1, 4), (0, 4)], [(1, 6, 4), (1, 4, 4)], [], []),
        ([(1, 1), (0, 2), (1, 20), (0, 1)], [(1, 2, 2), (1, 4, 20)], [], []),
        ([(0, 3), (2, 8), (0, 4)], [], [(2, 4, 4)], [0.5]),  # time positions 0, 1: no further than height and width
        ([(0, 3), (2, 18), (0, 2), (1, 4), (0, 1), (2, 4), (0, 4)], [(1, 4, 4)], [(2, 6, 6), (1, 4, 4)], [1.0, 3.0]),
    ],
    ids=["text", "image", "two images", "picture first, wide", "clip", "mixed"],
)
def test_positions_are_those_of_transformers(shared_policy, parts, images, videos, seconds):
    expected = transformers_positions(shared_policy.base, parts, images, videos, seconds)
    np.testing.assert_array_equal(ours(parts, images, videos, seconds), expected)


def test_time_positions_round_as_in_transformers_at_any_frame_rate(shared_policy):
    """Times that should be whole, such as 3 * 2/3 * 2 = 4, must not fall to 3 by rounding. The seconds come from summed frame times."""
    for fps in (0.3, 0.7, 1.1, 3.0, 23.976, 24.0, 25.0, 30000 / 1001):
        times = np.cumsum(np.full(16, 1 / fps))
        seconds = [float(times[-1] - times[0]) / 15 * 2]
        expected = transformers_positions(shared_policy.base, [(0, 1), (2, 8)], [], [(8, 2, 2)], [2 / fps])
        np.testing.assert_array_equal(ours([(0, 1), (2, 8)], [], [(8, 2, 2)], seconds), expected)


def test_text_after_a_long_video_starts_past_its_last_frame():
    """Two text tokens (0, 1); 4 frame pairs of one token, 2 s each, 2 positions a second: times 2, 6, 10, 14; the text goes on at 15.
    transformers 5 puts it at 3, inside the video; the original code and vLLM put it where we do."""
    positions = ours([(0, 2), (2, 4), (0, 2)], [], [(4, 2, 2)], [2.0])
    assert positions.tolist() == [[0, 1, 2, 6, 10, 14, 15, 16], [0, 1, 2, 2, 2, 2, 15, 16], [0, 1, 2, 2, 2, 2, 15, 16]]


def test_without_tokens_per_second_time_counts_frame_pairs():
    """Qwen2-VL: a frame pair is one position, whatever it lasts."""
    layout = VisionLayout(IMAGE, VIDEO, merge_size=2, tokens_per_second=None)
    assert ours([(0, 1), (2, 3), (0, 1)], [], [(3, 2, 2)], [9.0], layout)[0].tolist() == [0, 1, 2, 3, 4]


def test_two_pictures_side_by_side_are_told_apart_by_their_grids():
    """No text between them: the second starts one past the first's largest number."""
    assert ours([(1, 4), (1, 1), (0, 1)], [(1, 4, 4), (1, 2, 2)], [], [])[1].tolist() == [0, 0, 1, 1, 2, 3]


@pytest.mark.parametrize(
    ("parts", "images", "videos", "seconds", "message"),
    [
        ([(0, 2), (1, 4)], [], [], [], "token 2: a picture placeholder without a grid"),
        ([(0, 1), (2, 4)], [(1, 4, 4)], [], [], "token 1: a video placeholder without a grid"),
        ([(0, 1), (1, 4)], [(1, 4, 6)], [], [], r"token 1: grid \[1, 4, 6\] needs 6 placeholders, the prompt has 4"),
        ([(0, 1), (1, 5)], [(1, 4, 4)], [], [], "token 5: a picture placeholder without a grid"),
        ([(0, 3)], [(1, 4, 4)], [], [], "1 grids have no placeholder"),
        ([(0, 1), (2, 4)], [], [(1, 4, 4)], [], "1 video grids, but second_per_grid_ts has 0"),
    ],
)
def test_grids_that_do_not_fit_the_prompt(parts, images, videos, seconds, message):
    with pytest.raises(ValueError, match=message):
        ours(parts, images, videos, seconds)


@pytest.mark.parametrize(
    ("parts", "images", "videos"),
    [
        ([(0, 5)], [], []),
        ([(0, 3), (1, 6), (0, 2), (1, 4), (0, 4)], [(1, 6, 4), (1, 4, 4)], []),
        ([(1, 1), (0, 2), (1, 20), (0, 1)], [(1, 2, 2), (1, 4, 20)], []),
        ([(0, 3), (2, 4), (0, 7), (2, 4), (0, 4)], [], [(2, 4, 4)]),
        ([(2, 10), (0, 1), (2, 10), (0, 1), (2, 10), (0, 1)], [], [(3, 4, 10)]),
        ([(0, 3), (2, 9), (0, 6), (2, 9), (0, 2), (1, 4), (0, 1), (2, 4), (0, 4)], [(1, 4, 4)], [(2, 6, 6), (1, 4, 4)]),
    ],
    ids=["text", "two images", "picture first, wide", "clip", "clip first, wide", "mixed"],
)
def test_positions_of_frame_pairs_are_those_of_transformers(qwen3_vl, parts, images, videos):
    expected = transformers_positions(qwen3_vl[0], parts, images, videos, [])
    np.testing.assert_array_equal(ours(parts, images, videos, [], PAIRS), expected)


def test_each_frame_pair_is_a_picture_in_the_text():
    """Two text tokens (0, 1); a pair of 1 x 2 tokens at 2, as wide as 2; its time at 4; the next pair at 5; text at 7. Time stands still
    within a pair, however long it lasts."""
    positions = ours([(0, 2), (2, 2), (0, 1), (2, 2), (0, 1)], [], [(2, 2, 4)], [], PAIRS)
    assert positions.tolist() == [[0, 1, 2, 2, 4, 5, 5, 7], [0, 1, 2, 2, 4, 5, 5, 7], [0, 1, 2, 3, 4, 5, 6, 7]]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([(0, 1), (2, 4), (0, 1)], "1 grids have no placeholder"),
        ([(0, 1), (2, 4), (0, 1), (2, 4), (0, 1), (2, 4)], "token 11: a video placeholder without a grid"),
        ([(0, 1), (2, 4), (0, 1), (2, 3)], r"token 6: grid \[1, 4, 4\] needs 4 placeholders, the prompt has 3"),
    ],
)
def test_frame_pairs_that_do_not_fit_the_prompt(parts, message):
    with pytest.raises(ValueError, match=message):
        ours(parts, [], [(2, 4, 4)], [], PAIRS)


def test_layout_of_a_configuration(shared_policy, qwen3_vl):
    qwen2_5, qwen3 = shared_policy.base.config, qwen3_vl[0].config
    assert VisionLayout.of(qwen2_5) == VisionLayout(qwen2_5.image_token_id, qwen2_5.video_token_id, 2, tokens_per_second=2)
    marks = tuple(qwen3_vl[1].tokenizer.convert_tokens_to_ids(["<|vision_start|>", "<|vision_end|>"]))
    assert VisionLayout.of(qwen3) == VisionLayout(qwen3.image_token_id, qwen3.video_token_id, 2, None, pair_marks=marks)
