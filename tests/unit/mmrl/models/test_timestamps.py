"""Times as text between the frame pairs of a clip: what the prompt says, and that model, positions and engine agree on it."""

import numpy as np
import pytest
import torch

from mmrl.engines.hf import HFEngine
from mmrl.errors import RecipeError, TaskError
from mmrl.models.forward import GroupForward
from mmrl.models.processor import PromptMaker, prompt_positions
from mmrl.protocols import Sampling
from mmrl.types import Media, Task

PAIR = "<|vision_start|>" + "<|video_pad|>" * 6 + "<|vision_end|>"
"""56 x 84 pixels are 2 x 3 tokens of 28 x 28."""


@pytest.fixture
def clip_task():
    frames = np.random.default_rng(0).integers(0, 256, (5, 56, 84, 3), np.uint8)
    clip = Media(frames, np.array([0, 0.5, 1.25, 3.0, 61.57]))
    content = [{"type": "text", "text": "Look: "}, {"type": "video"}, {"type": "text", "text": "Go."}]
    return Task("a", ({"role": "system", "content": "S"}, {"role": "user", "content": content}), (clip,), "", {})


def test_each_pair_is_preceded_by_the_true_time_of_its_first_frame(processor, make_timed_prompts, clip_task):
    """Frames at 0, 0.5 | 1.25, 3 | 61.57 s, the last without a partner: 0.0, 1.2 (halfway: the even digit), 61.6."""
    (prompt,) = make_timed_prompts([clip_task])
    assert processor.tokenizer.decode(prompt.ids) == (
        f"<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nLook: 0.0s{PAIR}1.2s{PAIR}61.6s{PAIR}Go.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompt.text == processor.tokenizer.decode(prompt.ids).replace("<|video_pad|>" * 6, "<|video_pad|>")
    assert prompt.mm_inputs["video_grid_thw"].tolist() == [[1, 4, 6]] * 3
    assert prompt.mm_inputs["second_per_grid_ts"].shape == (3,)


def test_pixels_are_those_without_times_and_features_too(make_prompts, make_timed_prompts, shared_policy, clip_task):
    (plain,), (timed,) = make_prompts([clip_task]), make_timed_prompts([clip_task])
    np.testing.assert_array_equal(plain.mm_inputs["pixel_values_videos"], timed.mm_inputs["pixel_values_videos"])
    with torch.no_grad():
        one, other = (shared_policy.features([prompt])[0]["video"].tokens for prompt in (plain, timed))
    assert torch.equal(one, other)


@pytest.mark.parametrize("media", [(4,), (5, 2), ((56, 56), 4, (84, 84), 7)], ids=["clip", "two clips", "mixed"])
def test_positions_are_those_of_transformers(make_timed_prompts, shared_policy, picture_task, media):
    (prompt,) = make_timed_prompts([picture_task("a", *media, fps=0.25)])
    layout = shared_policy.layout
    kinds = torch.from_numpy((prompt.ids == layout.image_token_id) + 2 * (prompt.ids == layout.video_token_id))[None]
    given = {name: torch.from_numpy(value) for name, value in prompt.mm_inputs.items() if name in GRIDS}
    expected, _ = shared_policy.base.model.get_rope_index(torch.from_numpy(prompt.ids)[None], kinds, **given)
    np.testing.assert_array_equal(prompt_positions(prompt, layout), expected[:, 0].numpy())


GRIDS = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")


def test_without_clips_nothing_changes(make_prompts, make_timed_prompts, picture_task):
    task = picture_task("a", (56, 84), (84, 56))
    (plain,), (timed,) = make_prompts([task]), make_timed_prompts([task])
    assert plain.text == timed.text
    np.testing.assert_array_equal(plain.ids, timed.ids)
    assert plain.mm_inputs.keys() == timed.mm_inputs.keys()


def test_prompts_made_together_equal_prompts_made_alone(make_timed_prompts, processor, shared_policy, picture_task):
    tasks = [picture_task("a", 4), picture_task("b", 4, fps=1.0), picture_task("c", 5, (56, 56), 4)]
    for task, prompt in zip(tasks, make_timed_prompts(tasks), strict=True):
        (alone,) = PromptMaker(processor, shared_policy.layout, timestamps="interleaved")([task])
        np.testing.assert_array_equal(prompt.ids, alone.ids)
        assert prompt.text == alone.text


def test_the_engine_samples_what_the_trainer_trains(make_timed_prompts, processor, shared_policy, picture_task, naive_logps):
    """Log-probabilities as sampled, as trained, and as transformers' own full forward has them."""
    prompts = make_timed_prompts([picture_task("a", 6, fps=0.5), picture_task("b", 3, (56, 56))])
    engine = HFEngine()
    engine.attach(processor)
    engine.load_policy(shared_policy, 0)
    groups = engine.generate(prompts, 2, Sampling(max_completion_length=5))
    rows = [(prompt, completion.ids) for prompt, group in zip(prompts, groups, strict=True) for completion in group]
    trained = GroupForward(1.0, 0).logps(shared_policy, rows)
    for row, logps, completion in zip(rows, trained, [c for group in groups for c in group], strict=True):
        np.testing.assert_allclose(completion.sampling_logps, logps, atol=1e-5)
        with torch.no_grad():
            np.testing.assert_allclose(logps, naive_logps(shared_policy, *row, 1.0).numpy(), atol=1e-5)


def test_a_family_that_writes_times_itself(qwen3_vl, make_qwen3_vl_prompts):
    with pytest.raises(RecipeError, match=r"model\.timestamps: got 'interleaved'; .*use 'own'"):
        PromptMaker(qwen3_vl[1], make_qwen3_vl_prompts.layout, timestamps="interleaved")


def test_template_without_marks_around_the_video(processor, shared_policy, picture_task, monkeypatch):
    monkeypatch.setattr(processor, "chat_template", "Look: <|video_pad|> Go.")
    with pytest.raises(TaskError, match="task a: the chat template does not put its video between vision start and vision end"):
        PromptMaker(processor, shared_policy.layout, timestamps="interleaved")([picture_task("a", 4)])
