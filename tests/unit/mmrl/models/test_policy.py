"""Packed, naive and transformers' own full forward are one function: same log-probabilities, same gradient of every parameter."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mmrl.errors import RecipeError
from mmrl.models.policy import Policy
from mmrl.models.processor import PromptMaker
from mmrl.models.stream import build_stream
from mmrl.ops import entropy

TEMPERATURE = 0.7
PAD = 0
BATCHES = {  # name: [(prompt, completion lengths)]
    "one group, equal lengths": [("picture", [4, 4, 4])],
    "one group, ragged": [("picture", [5, 1, 3])],
    "single tokens": [("picture", [1, 1])],
    "one row": [("picture", [4])],
    "two pictures in a prompt": [("pictures", [3, 5])],
    "picture and clip": [("clip", [2, 4])],
    "text only": [("text", [3, 1])],
    "many groups": [("picture", [2, 6]), ("text", [4]), ("pictures", [1, 3]), ("wide", [5, 2]), ("clip", [2])],
}


@pytest.fixture
def prompts(make_prompts, picture_task):
    tasks = {
        "picture": picture_task("a", (56, 84)),
        "wide": picture_task("b", (56, 140), text="Which way? Up, down, left, right."),
        "pictures": picture_task("c", (84, 84), (56, 56)),
        "clip": picture_task("d", (56, 56), 4, fps=8.0),  # two frame pairs, both at time position 0
        "text": picture_task("e", text="Go."),
    }
    return dict(zip(tasks, make_prompts(list(tasks.values())), strict=True))


@pytest.fixture
def rows_of(prompts, completion_ids):
    def build(batch):
        pairs = [(prompts[name], length) for name, lengths in BATCHES[batch] for length in lengths]
        ids = completion_ids(1, [length for _, length in pairs])
        order = np.random.default_rng(2).permutation(len(pairs))  # rows of a prompt need not stand together
        return [(pairs[i][0], ids[i]) for i in order]

    return build


def with_gradients(policy, logps):
    """Log-probabilities, and the gradient of a weighted sum of them, by parameter."""
    policy.zero_grad()
    coefficients = torch.linspace(-1.0, 1.5, len(logps))
    (logps * coefficients).sum().backward()
    gradients = {name: p.grad.clone() for name, p in policy.base.named_parameters() if p.grad is not None}
    policy.zero_grad()
    return logps.detach(), gradients


def distance(one, other):
    """(largest difference in nats; largest relative difference of a parameter's gradient, against its own norm, or 1e-3 of the largest
    norm where that is more: some gradients are 0 but for rounding)."""
    nats = (one[0] - other[0]).abs().max().item()
    assert one[1].keys() == other[1].keys()
    floor = 1e-3 * max(g.norm().item() for g in other[1].values())
    relative = {name: (one[1][name] - g).norm().item() / max(g.norm().item(), floor) for name, g in other[1].items()}
    return nats, max(relative.values())


@pytest.mark.parametrize("batch", BATCHES)
def test_packed_and_naive_equal_the_unbatched_forward_of_transformers(new_policy, rows_of, naive_logps, batch):
    policy, rows = new_policy(), rows_of(batch)
    expected = with_gradients(policy, torch.cat([naive_logps(policy, *row, TEMPERATURE) for row in rows]))
    if "text" not in batch:
        assert expected[1]["model.visual.patch_embed.proj.weight"].norm() > 1e-2  # the picture is in the gradient from its first layer on
    for form in ("packed", "naive"):
        logps, none = policy(build_stream(rows, policy.layout, PAD, form), TEMPERATURE, False)
        nats, relative = distance(with_gradients(policy, logps), expected)
        assert none is None
        assert logps.dtype == torch.float32
        assert nats < 1e-5, form
        assert relative < 1e-5, form


def test_after_a_long_video_completions_go_on_past_its_last_frame(shared_policy, make_prompts, picture_task, completion_ids, naive_logps):
    """Where transformers' own positions overlap the video (see test_positions.py), its forward is given ours, counted out here."""
    (prompt,) = make_prompts([picture_task("long", 8, fps=1.0)])
    rows = [(prompt, ids) for ids in completion_ids(3, [3, 2])]
    is_video = prompt.ids == shared_policy.layout.video_token_id
    start, end = np.flatnonzero(is_video)[[0, -1]]
    first, after = np.full((3, 1), start), np.arange(len(prompt.ids) + 3 - end - 1)  # 4 pairs, 2 s each, 2 positions a second: 0, 4, 8, 12
    block = np.array([[0, 4, 8, 12], [0] * 4, [0] * 4]).repeat(4, 1) + np.array([[0] * 4, [0, 0, 1, 1], [0, 1, 0, 1]])[:, [0, 1, 2, 3] * 4]
    positions = np.concatenate([np.tile(np.arange(start), (3, 1)), first + block, np.tile(start + 13 + after, (3, 1))], 1)
    with torch.no_grad():
        expected = torch.cat([naive_logps(shared_policy, *row, 1.0, positions[:, : len(prompt.ids) + len(row[1])]) for row in rows])
        for form in ("packed", "naive"):
            logps, _ = shared_policy(build_stream(rows, shared_policy.layout, PAD, form), 1.0, False)
            torch.testing.assert_close(logps, expected, atol=1e-5, rtol=0)


def positions_from_the_prompts_length(stream, rows):
    """A completion that starts at P, as if a picture's tokens stood in a line."""
    positions, at = stream.positions.clone().flatten(1), 0
    for (prompt, _), length in zip(rows, stream.lengths, strict=True):
        places = stream.places[at : at + length]
        positions[:, places] += len(prompt.ids) - 1 - positions[0, places[0]].item()
        at += length
    return replace(stream, positions=positions.view_as(stream.positions))


def completions_that_see_each_other(stream, rows):
    return replace(stream, mask=torch.ones_like(stream.mask).tril())


def positions_in_one_dimension(stream, rows):
    """As of a text model: each token one past the one before it, completions past their prompt."""
    line = stream.positions.clone()
    for n in range(line.shape[1]):
        prompt = next(p for p, _ in rows if (stream.ids[n, : len(p.ids)] == torch.from_numpy(p.ids)).all())
        jump = len(prompt.ids) - 1 - line[0, n, len(prompt.ids) - 1].item()
        line[:, n, len(prompt.ids) - 1 :] += jump
        line[:, n, : len(prompt.ids)] = torch.arange(len(prompt.ids))
    return replace(stream, positions=line)


FAULTS = {f.__name__: f for f in (positions_from_the_prompts_length, completions_that_see_each_other, positions_in_one_dimension)}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_check_sees_a_wrong_stream(new_policy, rows_of, naive_logps, fault):
    """Negative controls: the same comparison, a stream with one classic fault; far outside the tolerance, not just past it."""
    policy, rows = new_policy(), rows_of("one group, ragged")
    expected = with_gradients(policy, torch.cat([naive_logps(policy, *row, TEMPERATURE) for row in rows]))
    stream = FAULTS[fault](build_stream(rows, policy.layout, PAD), rows)
    nats, relative = distance(with_gradients(policy, policy(stream, TEMPERATURE, False)[0]), expected)
    assert nats > 1e-3
    assert relative > 1e-3


def test_the_check_sees_a_picture_encoded_without_gradient(new_policy, rows_of, naive_logps, monkeypatch):
    """Its log-probabilities are right and the tower's gradient is gone: only the comparison of gradients can see it."""
    policy, rows = new_policy(), rows_of("one group, ragged")
    expected = with_gradients(policy, torch.cat([naive_logps(policy, *row, TEMPERATURE) for row in rows]))
    monkeypatch.setattr(policy.base.model, "get_image_features", torch.no_grad()(policy.base.model.get_image_features))
    actual = with_gradients(policy, policy(build_stream(rows, policy.layout, PAD), TEMPERATURE, False)[0])
    assert (actual[0] - expected[0]).abs().max() < 1e-5
    assert "model.visual.patch_embed.proj.weight" in expected[1].keys() - actual[1].keys()


@pytest.mark.parametrize("form", ["packed", "naive"])
def test_padding_never_matters(shared_policy, rows_of, form):
    with torch.no_grad():
        one, other = (
            shared_policy(build_stream(rows_of("many groups"), shared_policy.layout, pad, form), 1.0, False)[0] for pad in (0, 99)
        )
    assert torch.equal(one, other)


def test_logps_and_entropy_rule_out_vision_tokens_and_obey_temperature(shared_policy, prompts):
    """Over the whole vocabulary, as completions of one token: probabilities sum to 1 without the two vision tokens, and the entropy is that
    of the same distribution."""
    vocabulary = np.setdiff1d(np.arange(512), shared_policy.banned_ids.numpy())
    rows = [(prompts["text"], np.array([token])) for token in vocabulary]
    with torch.no_grad():
        logps, entropies = shared_policy(build_stream(rows, shared_policy.layout, PAD), 2.0, True)
        cold, _ = shared_policy(build_stream(rows, shared_policy.layout, PAD), 1.0, False)
    assert logps.exp().sum().item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(logps, (cold / 2).log_softmax(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(entropies, entropy(logps, temperature=1.0).expand(len(rows)), atol=1e-5, rtol=0)


def test_eager_attention_packs_too(new_policy, rows_of):
    """Eager attention adds its mask to the scores instead of masking with it."""
    policy, rows = new_policy(), rows_of("many groups")
    expected = with_gradients(policy, policy(build_stream(rows, policy.layout, PAD), 1.0, False)[0])
    policy.base.set_attn_implementation("eager")
    assert policy.can_pack
    nats, relative = distance(with_gradients(policy, policy(build_stream(rows, policy.layout, PAD), 1.0, False)[0]), expected)
    assert nats < 1e-5
    assert relative < 1e-5


def test_attention_without_masks_of_its_own_refuses_packed_rows(new_policy, rows_of):
    policy = new_policy()
    policy.base.config.get_text_config()._attn_implementation = "flash_attention_2"
    assert not policy.can_pack
    with pytest.raises(RecipeError, match=r"model\.attn_implementation: 'flash_attention_2' cannot pack rows"):
        policy(build_stream(rows_of("one row"), policy.layout, PAD), 1.0, False)


def test_bfloat16_policy_gives_float32_logps_near_those_of_float32(new_policy, shared_policy, rows_of):
    policy, rows = new_policy().to(torch.bfloat16), rows_of("many groups")
    logps, _ = policy(build_stream(rows, policy.layout, PAD), 1.0, False)
    exact, _ = shared_policy(build_stream(rows, policy.layout, PAD), 1.0, False)
    logps.sum().backward()
    assert logps.dtype == torch.float32
    assert (logps - exact).abs().mean() < 0.1  # bfloat16 keeps 8 bits
    assert all(p.grad.isfinite().all() for p in policy.parameters() if p.grad is not None)


def test_qwen2_vl_is_forwarded_as_by_transformers(shared_policy, processor, picture_task, completion_ids, naive_logps):
    """The other supported family: time counts frame pairs, whatever they last."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    full = shared_policy.base.config.to_dict()
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14, "spatial_merge_size": 2}
    tokens = {name: full[name] for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")}
    text = {k: v for k, v in full["text_config"].items() if k != "model_type"}
    torch.manual_seed(0)
    policy = Policy(Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision, **tokens)))
    prompts = PromptMaker(processor, policy.layout)([picture_task("a", (56, 84), 4, fps=0.5)])
    rows = [(prompts[0], ids) for ids in completion_ids(0, [3, 2])]
    bare = replace(prompts[0], mm_inputs={k: v for k, v in prompts[0].mm_inputs.items() if k != "second_per_grid_ts"})
    expected = with_gradients(policy, torch.cat([naive_logps(policy, bare, ids, 1.0) for _, ids in rows]))
    nats, relative = distance(with_gradients(policy, policy(build_stream(rows, policy.layout, PAD), 1.0, False)[0]), expected)
    assert nats < 1e-5
    assert relative < 1e-5
