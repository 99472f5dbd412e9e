import numpy as np
import pytest
import torch
from transformers.video_utils import VideoMetadata

from mmrl.errors import TaskError
from mmrl.models.processor import PromptMaker, prompt_positions
from mmrl.types import Media, Task


def of_transformers(processor, task, fps=2.0):
    """What the model's own processor makes of the same messages and pixels."""
    images = [torch.from_numpy(m.frames[0]).permute(2, 0, 1) for m in task.media if not m.is_video]
    videos = [torch.from_numpy(m.frames).permute(0, 3, 1, 2) for m in task.media if m.is_video]
    metadata = [VideoMetadata(total_num_frames=len(v), fps=fps, frames_indices=list(range(len(v)))) for v in videos]
    text = processor.apply_chat_template([dict(m) for m in task.messages], tokenize=False, add_generation_prompt=True)
    video = {"videos": videos, "video_metadata": metadata, "do_sample_frames": False} if videos else {}
    return processor(text=[text], images=images or None, return_tensors="pt", **video)


@pytest.mark.parametrize(
    "media",
    [(), ((56, 84),), ((84, 56), (140, 56)), ((50, 131),), (4,), (5,), ((56, 56), 4, (84, 84), 6)],
    ids=["text", "image", "two sizes", "resized", "clip", "odd clip", "mixed"],
)
def test_prompt_is_that_of_the_models_own_processor(processor, make_prompts, picture_task, media):
    task = picture_task("a", *media)
    (prompt,) = make_prompts([task])
    expected = of_transformers(processor, task)
    np.testing.assert_array_equal(prompt.ids, expected["input_ids"][0].numpy())
    assert set(prompt.mm_inputs) == set(expected) - {"input_ids", "attention_mask", "mm_token_type_ids"}
    for name, value in prompt.mm_inputs.items():
        np.testing.assert_array_equal(value.astype(np.float32), np.asarray(expected[name], np.float32), err_msg=name)
    assert prompt.ids.dtype == np.int64
    assert prompt.text.count("_pad|>") == len(media)


def drop_outer_marks(ids, layout):
    """`ids` without the vision starts that no vision token follows, and the ends that none precedes; and how many they were."""
    vision = np.concatenate([[False], layout.is_vision(ids), [False]])
    start, end = layout.pair_marks
    outer = ((ids == start) & ~vision[2:]) | ((ids == end) & ~vision[:-2])
    return ids[~outer], outer.sum()


@pytest.mark.parametrize("fps", [0.3, 2.0, 24.0, 30000 / 1001])
@pytest.mark.parametrize(
    "media",
    [(), ((64, 96),), ((96, 64), (160, 64)), ((50, 131),), (4,), (5,), (4, 6), ((56, 56), 4, (84, 84), 6)],
    ids=["text", "image", "two sizes", "resized", "clip", "odd clip", "two clips", "mixed"],
)
def test_qwen3_vl_prompt_is_that_of_its_own_processor_less_the_doubled_marks(qwen3_vl, make_qwen3_vl_prompts, picture_task, media, fps):
    """At an even frame rate: transformers knows no other. Its outer start and end around each clip are what we leave out."""
    task = picture_task("a", *media, fps=fps)
    (prompt,) = make_qwen3_vl_prompts([task])
    expected = of_transformers(qwen3_vl[1], task, fps)
    ids, dropped = drop_outer_marks(expected["input_ids"][0].numpy(), make_qwen3_vl_prompts.layout)
    np.testing.assert_array_equal(prompt.ids, ids)
    assert dropped == 2 * sum(m.is_video for m in task.media)
    assert drop_outer_marks(prompt.ids, make_qwen3_vl_prompts.layout)[1] == 0
    assert set(prompt.mm_inputs) == set(expected) - {"input_ids", "attention_mask", "mm_token_type_ids", "video_metadata"}
    for name, value in prompt.mm_inputs.items():
        np.testing.assert_array_equal(value, expected[name].numpy(), err_msg=name)
    assert prompt.ids.dtype == np.int64
    assert prompt.text.count("_pad|>") == len(media)


def test_qwen3_vl_writes_the_true_mean_time_before_each_frame_pair(qwen3_vl, make_qwen3_vl_prompts):
    """Frames at 0, 0.5 | 1.25, 3 | 61.52 s, the last without a partner: means 0.25, 2.125, 61.52, written with one decimal (0.25 is
    halfway and goes to the even digit, as everywhere in Python). 64 x 96 pixels are 2 x 3 tokens of 32 x 32."""
    frames = np.random.default_rng(0).integers(0, 256, (5, 64, 96, 3), np.uint8)
    clip = Media(frames, np.array([0, 0.5, 1.25, 3.0, 61.52]))
    content = [{"type": "text", "text": "Look: "}, {"type": "video"}, {"type": "text", "text": "Go."}]
    (prompt,) = make_qwen3_vl_prompts(
        [Task("a", ({"role": "system", "content": "S"}, {"role": "user", "content": content}), (clip,), "", {})]
    )
    pair = "<|vision_start|>" + "<|video_pad|>" * 6 + "<|vision_end|>"
    clip_text = f"<0.2 seconds>{pair}<2.1 seconds>{pair}<61.5 seconds>{pair}"
    assert qwen3_vl[1].tokenizer.decode(prompt.ids) == (
        f"<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nLook: {clip_text}Go.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompt.mm_inputs["video_grid_thw"].tolist() == [[3, 4, 6]]
    assert prompt.mm_inputs["pixel_values_videos"].shape == (72, 3 * 2 * 16 * 16)


@pytest.mark.parametrize("media", [((64, 96),), (4,), (5, 2), ((56, 56), 4, (96, 64), 6)], ids=["image", "clip", "two clips", "mixed"])
def test_qwen3_vl_positions_of_our_prompts_are_those_of_transformers(qwen3_vl, make_qwen3_vl_prompts, picture_task, media):
    (prompt,) = make_qwen3_vl_prompts([picture_task("a", *media)])
    layout = make_qwen3_vl_prompts.layout
    kinds = torch.from_numpy((prompt.ids == layout.image_token_id) + 2 * (prompt.ids == layout.video_token_id))[None]
    grids = {name: torch.from_numpy(value) for name, value in prompt.mm_inputs.items() if name.endswith("_grid_thw")}
    expected, _ = qwen3_vl[0].model.get_rope_index(torch.from_numpy(prompt.ids)[None], kinds, **grids)
    np.testing.assert_array_equal(prompt_positions(prompt, layout), expected[:, 0].numpy())


def test_qwen3_vl_prompts_made_together_equal_prompts_made_alone(make_qwen3_vl_prompts, picture_task):
    """Same words, other times: what is kept of a text must not hold a clip's times."""
    tasks = [picture_task("a", (56, 84), 4), picture_task("b", (56, 84), 4, fps=1.0), picture_task("c", (84, 56), 6)]
    a, b, c = make_qwen3_vl_prompts(tasks)
    assert not np.array_equal(a.ids, b.ids)
    for task, prompt in zip(tasks, (a, b, c), strict=True):
        (alone,) = PromptMaker(make_qwen3_vl_prompts.processor, make_qwen3_vl_prompts.layout)([task])
        np.testing.assert_array_equal(prompt.ids, alone.ids)


@pytest.mark.parametrize(
    "template", ["Look: <|video_pad|> Go.", "<|video_pad|>", "<|vision_start|><|video_pad|> Go.", "Look: <|video_pad|><|vision_end|>"]
)
def test_qwen3_vl_template_without_marks_around_the_video(qwen3_vl, make_qwen3_vl_prompts, picture_task, monkeypatch, template):
    processor = qwen3_vl[1]
    monkeypatch.setattr(processor, "chat_template", template)
    with pytest.raises(TaskError, match="task a: the chat template does not put its video between vision start and vision end"):
        PromptMaker(processor, make_qwen3_vl_prompts.layout)([picture_task("a", 4)])


def test_qwen3_vl_takes_no_clip_of_one_frame(make_qwen3_vl_prompts, picture_task):
    """Its processor refuses less than a pair, which Qwen2.5-VL's fills up by itself."""
    with pytest.raises(TaskError, match=r"task a: its video of 1 frames, 56 x 56 pixels, is refused .*temporal_factor"):
        make_qwen3_vl_prompts([picture_task("a", 1)])


def test_prompts_made_together_equal_prompts_made_alone(make_prompts, picture_task):
    tasks = [picture_task("a", (56, 84), 4), picture_task("b"), picture_task("c", (84, 56), (56, 84)), picture_task("d", 4)]
    for task, prompt in zip(tasks, make_prompts(tasks), strict=True):
        (alone,) = make_prompts([task])
        assert prompt.task is task
        np.testing.assert_array_equal(prompt.ids, alone.ids)
        assert prompt.mm_inputs.keys() == alone.mm_inputs.keys()
        for name, value in prompt.mm_inputs.items():
            np.testing.assert_array_equal(value, alone.mm_inputs[name])


def test_positions_of_a_prompt_with_picture_and_clip(make_prompts, picture_task, shared_policy):
    """The grids reach the positions in order: 4 picture tokens, then 2 frame pairs of 4 tokens, 1 s each (2 positions)."""
    (prompt,) = make_prompts([picture_task("a", (56, 56), 4)])
    positions = prompt_positions(prompt, shared_policy.layout)
    (image,) = np.flatnonzero(np.diff(prompt.ids == shared_policy.layout.image_token_id, prepend=False))[:1]
    video = np.flatnonzero(prompt.ids == shared_policy.layout.video_token_id)
    assert (positions[:, image : image + 4] - image).tolist() == [[0] * 4, [0, 0, 1, 1], [0, 1, 0, 1]]
    assert (positions[0, video] - positions[0, video[0]]).tolist() == [0] * 4 + [2] * 4


def test_no_tasks_make_no_prompts(make_prompts):
    assert make_prompts([]) == []


def test_media_and_messages_must_agree(make_prompts, picture_task):
    task = picture_task("a", (56, 56), 4)
    swapped = Task("swapped", task.messages, task.media[::-1], "", {})
    with pytest.raises(TaskError, match=r"task swapped: the prompt asks for \['image', 'video'\] and the task brings \['video', 'image'\]"):
        make_prompts([swapped])
    with pytest.raises(TaskError, match=r"task bare: .* asks for \['image', 'video'\] and the task brings \[\]"):
        make_prompts([Task("bare", task.messages, (), "", {})])


def test_a_placeholder_written_in_the_text_is_not_taken_for_a_picture(make_prompts, picture_task):
    with pytest.raises(TaskError, match=r"task a: the prompt asks for \['image', 'image'\]"):
        make_prompts([picture_task("a", (56, 56), text="What is <|image_pad|>?")])


def test_too_long_a_prompt_names_its_task(processor, shared_policy, make_prompts, picture_task):
    tasks = [picture_task("short"), picture_task("long/7", (56, 84))]
    length = len(make_prompts(tasks)[1].ids)
    PromptMaker(processor, shared_policy.layout, max_prompt_length=length)(tasks)
    with pytest.raises(TaskError, match=f"task long/7: its prompt has {length} tokens, the limit is {length - 1}"):
        PromptMaker(processor, shared_policy.layout, max_prompt_length=length - 1)(tasks)


def test_prompt_must_end_in_text(processor, shared_policy, picture_task, monkeypatch):
    monkeypatch.setattr(processor, "chat_template", "Look: <|image_pad|>")
    with pytest.raises(TaskError, match="task a: its prompt ends in a picture"):
        PromptMaker(processor, shared_policy.layout)([picture_task("a", (56, 56))])


def test_a_picture_that_the_processor_refuses_names_its_task(make_prompts, picture_task):
    """Qwen takes no picture more than 200 times as long as wide."""
    with pytest.raises(TaskError, match=r"task strip: its picture of 28 x 5700 pixels is refused .*aspect ratio"):
        make_prompts([picture_task("a", (56, 56)), picture_task("strip", (28, 5700))])


def test_a_clip_of_one_frame_is_one_pair(make_prompts):
    """The frame is doubled to fill a pair; without a second frame its length is taken as a second a frame."""
    clip = Media(np.zeros((1, 56, 56, 3), np.uint8), np.zeros(1))
    task = Task("one", ({"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Go."}]},), (clip,), "", {})
    (prompt,) = make_prompts([task])
    assert prompt.mm_inputs["video_grid_thw"].tolist() == [[1, 4, 4]]
    assert prompt.mm_inputs["second_per_grid_ts"].tolist() == [2.0]
