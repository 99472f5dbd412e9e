"""A stream's shape: what is where. That it gives the right numbers is tests/unit/mmrl/models/test_forward.py's to show."""

import numpy as np
import pytest
import torch

from mmrl.models.positions import VisionLayout
from mmrl.models.stream import pack_prefixes, pack_segments, pad_lines, stack_media
from mmrl.types import Prompt, Task

LAYOUT = VisionLayout(image_token_id=90, video_token_id=91, merge_size=2, tokens_per_second=2)
PAD = 0
CPU = torch.device("cpu")


@pytest.fixture
def text_prompt():
    return lambda *ids: Prompt(Task("t", (), (), "", {}), "", np.array(ids), {})


def test_streams_by_hand(text_prompt):
    """Prompts 1 2 3 and 8 9, completions 4 5 6 and 7 of the first, 5 of the second: prompts without their last tokens, then each completion
    headed by that token."""
    prefixes = pack_prefixes([text_prompt(1, 2, 3), text_prompt(8, 9)], LAYOUT, CPU)
    segments = pack_segments(prefixes, [(0, np.array([4, 5, 6])), (0, np.array([7])), (1, np.array([5]))])
    assert prefixes.ids.tolist() == [[1, 2, 8]]
    assert prefixes.positions[:, 0].tolist() == [[0, 1, 0]] * 3
    assert (prefixes.lengths, prefixes.last_positions) == ((2, 1), (2, 1))
    assert segments.ids.tolist() == [[3, 4, 5, 3, 9]]
    assert segments.positions[:, 0].tolist() == [[2, 3, 4, 2, 1]] * 3
    assert segments.targets.tolist() == [4, 5, 6, 7, 5]
    assert (segments.lengths, segments.tokens_of_prefix) == ((3, 1, 1), (4, 1))
    assert segments.own().queries == segments.own().keys == ((0, 3), (3, 4), (4, 5))
    cross = segments.cross(prefixes, start=3)
    assert (cross.queries, cross.keys) == (((3, 7), (7, 8)), ((0, 2), (2, 3)))


def test_lines_by_hand(text_prompt):
    prompt = text_prompt(1, 2, 3)
    lines = pad_lines([(prompt, np.array([4, 5, 6])), (prompt, np.array([7]))], LAYOUT, PAD, CPU)
    assert lines.ids.tolist() == [[1, 2, 3, 4, 5], [1, 2, 3, PAD, PAD]]
    assert lines.positions[1].tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 0, 0]]
    assert lines.places.tolist() == [2, 3, 4, 7]
    assert lines.targets.tolist() == [4, 5, 6, 7]


def test_positions_go_on_past_the_largest_of_the_prompt():
    """A 2 x 3 picture after one token: rows 1 2, columns 1 2 3; so the text after it is at 4, and the completion's tokens at 5 and on."""
    mm = {"pixel_values": np.zeros((24, 1)), "image_grid_thw": np.array([[1, 4, 6]])}
    prompt = Prompt(Task("t", (), (), "", {}), "", np.array([1, *[90] * 6, 2]), mm)
    segments = pack_segments(pack_prefixes([prompt], LAYOUT, CPU), [(0, np.array([3, 4, 5])), (0, np.array([6]))])
    assert segments.positions[:, 0].tolist() == [[4, 5, 6, 4]] * 3
    assert pad_lines([(prompt, np.array([3, 4, 5]))], LAYOUT, PAD, CPU).positions[:, 0, 7:].tolist() == [[4, 5, 6]] * 3


def test_media_are_joined_in_the_prompts_order(make_prompts, picture_task):
    """Also where a prompt without pictures stands between."""
    prompts = make_prompts([picture_task("a", (56, 84)), picture_task("b"), picture_task("c", 4, (56, 56))])
    media = stack_media([prompts[n] for n in (2, 1, 0)])
    expected = np.concatenate([prompts[2].mm_inputs["pixel_values"], prompts[0].mm_inputs["pixel_values"]])
    np.testing.assert_array_equal(media["pixel_values"].numpy(), expected)
    assert media["image_grid_thw"].tolist() == [[1, 4, 4], [1, 4, 6]]
    assert media["video_grid_thw"].tolist() == [[2, 4, 4]]
