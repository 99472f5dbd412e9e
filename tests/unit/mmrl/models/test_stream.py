"""A stream's shape: what is where. That it gives the right numbers is tests/unit/mmrl/models/test_policy.py's to show."""

import numpy as np
import pytest
import torch

from mmrl.models.positions import VisionLayout
from mmrl.models.stream import build_stream
from mmrl.types import Prompt, Task

LAYOUT = VisionLayout(image_token_id=90, video_token_id=91, merge_size=2, tokens_per_second=2)
PAD = 0


@pytest.fixture
def text_prompt():
    return lambda *ids: Prompt(Task("t", (), (), "", {}), "", np.array(ids), {})


def rows(prompt, *completions):
    return [(prompt, np.array(ids)) for ids in completions]


def test_packed_line_by_hand(text_prompt):
    """Prompt 1 2 3, completions 4 5 6 and 7: the prompt but its last token once, then each completion headed by that token."""
    stream = build_stream(rows(text_prompt(1, 2, 3), [4, 5, 6], [7]), LAYOUT, PAD)
    assert stream.ids.tolist() == [[1, 2, 3, 4, 5, 3]]
    assert stream.positions[0].tolist() == [[0, 1, 2, 3, 4, 2]]
    assert stream.places.tolist() == [2, 3, 4, 5]
    assert stream.targets.tolist() == [4, 5, 6, 7]
    assert stream.lengths == (3, 1)
    assert stream.mask is not None
    assert stream.mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 0, 0, 0, 1],  # the second completion sees the prompt and itself, not the first
    ]


def test_naive_lines_by_hand(text_prompt):
    stream = build_stream(rows(text_prompt(1, 2, 3), [4, 5, 6], [7]), LAYOUT, PAD, "naive")
    assert stream.ids.tolist() == [[1, 2, 3, 4, 5], [1, 2, 3, PAD, PAD]]
    assert stream.mask is None
    assert stream.places.tolist() == [2, 3, 4, 7]


def test_results_keep_the_order_of_the_rows(text_prompt):
    """Rows of two prompts, interleaved: lines gather them, places and targets stay row by row."""
    a, b = text_prompt(1, 2), text_prompt(3, 4, 5)
    stream = build_stream([(a, np.array([6])), (b, np.array([7, 8])), (a, np.array([9, 10]))], LAYOUT, PAD)
    assert stream.ids.tolist() == [[1, 2, 2, 9], [3, 4, 5, 7]]
    assert stream.places.tolist() == [1, 6, 7, 2, 3]
    assert stream.targets.tolist() == [6, 7, 8, 9, 10]


def test_positions_go_on_past_the_largest_of_the_prompt():
    """A 2 x 3 picture after one token: rows 1 2, columns 1 2 3; so the text after it is at 4, and the completion's tokens at 5 and on."""
    mm = {"pixel_values": np.zeros((24, 1)), "image_grid_thw": np.array([[1, 4, 6]])}
    prompt = Prompt(Task("t", (), (), "", {}), "", np.array([1, *[90] * 6, 2]), mm)
    stream = build_stream(rows(prompt, [3, 4, 5], [6]), LAYOUT, PAD)
    assert stream.positions[:, 0, 7:].tolist() == [[4, 5, 6, 4]] * 3


def test_media_are_joined_in_line_order(make_prompts, picture_task, shared_policy, completion_ids):
    """Also where a prompt without pictures stands between; each prompt's picture is there once, however many rows it has."""
    prompts = make_prompts([picture_task("a", (56, 84)), picture_task("b"), picture_task("c", 4, (56, 56))])
    picks = [prompts[n] for n in (2, 1, 0, 0, 2)]
    stream = build_stream(list(zip(picks, completion_ids(0, [2] * 5), strict=True)), shared_policy.layout, PAD)
    expected = np.concatenate([prompts[2].mm_inputs["pixel_values"], prompts[0].mm_inputs["pixel_values"]])
    np.testing.assert_array_equal(stream.mm_inputs["pixel_values"].numpy(), expected)
    assert stream.mm_inputs["image_grid_thw"].tolist() == [[1, 4, 4], [1, 4, 6]]
    assert stream.mm_inputs["video_grid_thw"].tolist() == [[2, 4, 4]]


@pytest.mark.parametrize(("completion", "problem"), [([], "is empty"), ([4, 90], "holds a picture or video token")])
def test_completions_that_cannot_be_forwarded(text_prompt, completion, problem):
    with pytest.raises(ValueError, match=f"row 1, task t: the completion {problem}"):
        build_stream([*rows(text_prompt(1, 2), [3]), (text_prompt(1), np.array(completion, np.int64))], LAYOUT, PAD)


def test_no_rows():
    with pytest.raises(ValueError, match="at least one row"):
        build_stream([], LAYOUT, PAD)


@pytest.mark.parametrize("form", ["packed", "naive"])
def test_to_moves_every_tensor(make_prompts, picture_task, shared_policy, completion_ids, form):
    (prompt,) = make_prompts([picture_task("a", (56, 84))])
    stream = build_stream([(prompt, completion_ids(0, [3])[0])], shared_policy.layout, PAD, form).to("meta")
    tensors = [stream.ids, stream.positions, stream.places, stream.targets, *stream.mm_inputs.values()]
    tensors += [] if stream.mask is None else [stream.mask]
    assert {t.device for t in tensors} == {torch.device("meta")}
    assert stream.lengths == (3,)
