import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from data_pipelines.tasks.maze import MazeTasks
from mmrl.models import tiny
from mmrl.models.policy import Policy
from mmrl.models.processor import PromptMaker, prompt_positions


def test_the_seed_decides_every_weight_and_nothing_else(tiny_shape):
    one = dict(tiny.build_untrained(tiny_shape, 0)[0].named_parameters())
    torch.rand(3)
    before = torch.random.get_rng_state()
    again, other = (dict(tiny.build_untrained(tiny_shape, seed)[0].named_parameters()) for seed in (0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)  # leaves the caller's random numbers alone
    assert all(torch.equal(weight, again[name]) for name, weight in one.items())
    assert not torch.equal(one["model.visual.patch_embed.proj.weight"], other["model.visual.patch_embed.proj.weight"])


def test_it_is_a_published_checkpoint_to_transformers(tiny_folder, shared_policy, make_prompts, picture_task, completion_ids, naive_logps):
    """Saved, then opened with the Auto classes: same ids, same pixels, and bit for bit the same log-probabilities."""
    policy, processor = Policy(AutoModelForImageTextToText.from_pretrained(tiny_folder)), AutoProcessor.from_pretrained(tiny_folder)
    task = picture_task("a", (56, 84), 4, fps=8.0)
    (prompt,), (loaded,) = make_prompts([task]), PromptMaker(processor, policy.layout)([task])
    np.testing.assert_array_equal(prompt.ids, loaded.ids)
    for name, value in prompt.mm_inputs.items():
        np.testing.assert_array_equal(value, loaded.mm_inputs[name])
    (ids,) = completion_ids(0, [5])
    with torch.no_grad():
        assert torch.equal(naive_logps(policy, loaded, ids, 1.0), naive_logps(shared_policy, prompt, ids, 1.0))
    assert policy.base.generation_config.eos_token_id == processor.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])


def test_moves_and_tags_are_one_token_each_and_stay_in_the_text(processor):
    text = "<think>no</think><|up|><|down|><|left|><|right|><answer>"
    ids = processor.tokenizer(text)["input_ids"]
    assert processor.tokenizer.convert_ids_to_tokens(ids) == [
        "<think>", "no", "</think>", "<|up|>", "<|down|>", "<|left|>", "<|right|>", "<answer>",
    ]  # fmt: skip
    assert processor.tokenizer.decode([*ids, processor.tokenizer.convert_tokens_to_ids("<|im_end|>")], skip_special_tokens=True) == text


def test_any_text_survives_the_tokenizer(processor):
    """Byte-level: no unknown token, also outside the corpus that it was made from."""
    for text in ("Zürich 北京 🙂 \t\n  naïve", "x = [1, 2.5]; # ok", "the GOAL's  left"):
        ids = processor.tokenizer(text)["input_ids"]
        assert processor.tokenizer.decode(ids) == text
        assert max(ids) < 512


def test_one_maze_cell_is_one_visual_token():
    """5 x 5 cells of 28 pixels, at the full tiny model's size: 140 x 140 is not resized, 10 x 10 patches, 25 tokens, and a cell's pixels
    are in one token's four patches: painting a cell changes no other."""
    model, processor = tiny.build_untrained()
    maker = PromptMaker(processor, Policy(model).layout)
    source = MazeTasks("train", 0, 5, 5, "1-4")
    (prompt,) = maker([source.task(source.key(0))])
    assert prompt.mm_inputs["image_grid_thw"].tolist() == [[1, 10, 10]]
    assert (prompt.ids == maker.layout.image_token_id).sum() == 25
    frames = prompt.task.media[0].frames.copy()
    frames[0, 28:56, 84:112] = (255, 0, 128)  # cell (1, 3): visual token 1 * 5 + 3
    patches = processor.image_processor(images=[torch.from_numpy(frames[0]).permute(2, 0, 1)], return_tensors="np")["pixel_values"]
    changed = np.flatnonzero((np.asarray(patches) != prompt.mm_inputs["pixel_values"]).any(1))
    assert set(changed // 4) == {8}


def test_tiny_qwen3_vl_is_a_published_checkpoint_to_transformers(
    qwen3_vl, qwen3_vl_folder, make_qwen3_vl_prompts, picture_task, completion_ids, naive_logps
):
    """Saved, then opened with the Auto classes: same prompt, and bit for bit the same log-probabilities, with transformers' positions
    and with ours."""
    model, processor = AutoModelForImageTextToText.from_pretrained(qwen3_vl_folder), AutoProcessor.from_pretrained(qwen3_vl_folder)
    assert isinstance(model, Qwen3VLForConditionalGeneration)
    assert isinstance(processor, Qwen3VLProcessor)
    layout = make_qwen3_vl_prompts.layout
    task = picture_task("a", (56, 84), 4, fps=8.0)
    (prompt,), (loaded,) = make_qwen3_vl_prompts([task]), PromptMaker(processor, layout)([task])
    np.testing.assert_array_equal(prompt.ids, loaded.ids)
    for name, value in prompt.mm_inputs.items():
        np.testing.assert_array_equal(value, loaded.mm_inputs[name])
    (ids,) = completion_ids(0, [5])
    place = prompt_positions(prompt, layout)
    positions = np.concatenate([place, np.broadcast_to(place.max() + 1 + np.arange(5), (3, 5))], axis=1)
    with torch.no_grad():
        saved = naive_logps(Policy(qwen3_vl[0]), prompt, ids, 1.0)
        assert torch.equal(naive_logps(Policy(model), loaded, ids, 1.0), saved)
        assert torch.equal(naive_logps(Policy(model), loaded, ids, 1.0, positions), saved)
    assert model.generation_config.eos_token_id == processor.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])


def test_every_part_of_the_tiny_qwen3_vl_counts(qwen3_vl, make_qwen3_vl_prompts, picture_task, completion_ids, naive_logps):
    """Features added to deeper layers, and each axis of the positions, move the log-probabilities far more than rounding: a test of
    another forward against this model sees them missing."""
    policy = Policy(qwen3_vl[0])
    (prompt,), (ids,) = make_qwen3_vl_prompts([picture_task("a", (56, 84), 4)]), completion_ids(0, [5])
    place = prompt_positions(prompt, make_qwen3_vl_prompts.layout)
    positions = np.concatenate([place, np.broadcast_to(place.max() + 1 + np.arange(5), (3, 5))], axis=1)
    deepstack = qwen3_vl[0].model.visual.deepstack_merger_list
    assert len(deepstack) == 2
    with torch.no_grad():
        exact = naive_logps(policy, prompt, ids, 1.0)
        for axis in range(3):
            moved = positions.copy()
            moved[axis, : len(prompt.ids)] = np.arange(len(prompt.ids))
            assert (naive_logps(policy, prompt, ids, 1.0, moved) - exact).abs().max() > 1e-2
        for merger in deepstack:
            silenced = merger.register_forward_hook(lambda merger, given, features: torch.zeros_like(features))
            assert (naive_logps(policy, prompt, ids, 1.0) - exact).abs().max() > 1e-2
            silenced.remove()
        assert torch.equal(naive_logps(policy, prompt, ids, 1.0), exact)
