"""Every form of the group forward and transformers' own full forward are one function: same log-probabilities, same gradient of every
parameter. Then the classic faults, one at a time: the same comparison must see each."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from mmrl.models import forward
from mmrl.models import policy as policy_module
from mmrl.models.forward import GroupForward
from mmrl.models.policy import Policy
from mmrl.models.processor import PromptMaker
from mmrl.models.spans import Spans
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
    "clips with times between their pairs": [("timed clips", [3, 1, 4])],
    "text only": [("text", [3, 1])],
    "many groups": [("picture", [2, 6]), ("text", [4]), ("pictures", [1, 3]), ("wide", [5, 2]), ("clip", [2]), ("timed clips", [2, 1])],
}
FORMS = {
    "two streams": {},
    "two streams, one row a part": {"max_rows": 1},
    "two streams, few tokens": {"max_tokens": 40},
    "flat": {"form": "flat"},
    "flat, few tokens": {"form": "flat", "max_tokens": 60},
    "lines": {"form": "lines"},
    "lines, few tokens": {"form": "lines", "max_tokens": 60},
}


@pytest.fixture
def prompts(make_prompts, make_timed_prompts, picture_task):
    tasks = {
        "picture": picture_task("a", (56, 84)),
        "wide": picture_task("b", (56, 140), text="Which way? Up, down, left, right."),
        "pictures": picture_task("c", (84, 84), (56, 56)),
        "clip": picture_task("d", (56, 56), 4, fps=8.0),  # two frame pairs, both at time position 0
        "text": picture_task("e", text="Go."),
    }
    (timed,) = make_timed_prompts([picture_task("t", 5, (56, 84), 2, fps=0.5)])
    return {**dict(zip(tasks, make_prompts(list(tasks.values())), strict=True)), "timed clips": timed}


@pytest.fixture
def rows_of(prompts, completion_ids):
    def build(batch):
        pairs = [(prompts[name], length) for name, lengths in BATCHES[batch] for length in lengths]
        ids = completion_ids(1, [length for _, length in pairs])
        order = np.random.default_rng(2).permutation(len(pairs))  # rows of a prompt need not stand together
        return [(pairs[i][0], ids[i]) for i in order]

    return build


def coefficients(rows):
    lengths = [len(ids) for _, ids in rows]
    return torch.linspace(-1.0, 1.5, sum(lengths)).split(lengths)


def gradients(policy):
    found = {name: p.grad.clone() for name, p in policy.base.named_parameters() if p.grad is not None}
    policy.zero_grad()
    return found


def came(policy, rows, **settings):
    """Log-probabilities, row after row, and the gradient of a weighted sum of them, by parameter."""
    settings = {"temperature": TEMPERATURE, "pad_id": PAD} | settings
    policy.zero_grad()
    out, weights = [None] * len(rows), coefficients(rows)
    for part in GroupForward(**settings)(policy, rows):
        assert part.logps.dtype == torch.promote_types(policy.base.dtype, torch.float32)
        (part.logps * torch.cat([weights[n] for n in part.rows])).sum().backward()
        for n, values in zip(part.rows, part.logps.detach().split([len(rows[n][1]) for n in part.rows]), strict=True):
            assert out[n] is None
            out[n] = values
    return torch.cat(out), gradients(policy)


def expected_of(policy, rows, naive_logps, temperature=TEMPERATURE):
    policy.zero_grad()
    logps = torch.cat([naive_logps(policy, *row, temperature) for row in rows])
    (logps * torch.cat(coefficients(rows))).sum().backward()
    return logps.detach(), gradients(policy)


def distance(one, other):
    """(largest difference in nats; largest relative difference of a parameter's gradient, against its own norm, or 1e-3 of the largest
    norm where that is more: some gradients are 0 but for rounding)."""
    nats = (one[0] - other[0]).abs().max().item()
    assert one[1].keys() == other[1].keys()
    floor = 1e-3 * max(g.norm().item() for g in other[1].values())
    relative = {name: (one[1][name] - g).norm().item() / max(g.norm().item(), floor) for name, g in other[1].items()}
    return nats, max(relative.values())


@pytest.mark.parametrize("batch", BATCHES)
def test_every_form_equals_the_unbatched_forward_of_transformers(new_policy, rows_of, naive_logps, batch):
    policy, rows = new_policy(), rows_of(batch)
    expected = expected_of(policy, rows, naive_logps)
    if "text" not in batch:
        assert expected[1]["model.visual.patch_embed.proj.weight"].norm() > 1e-2  # the picture is in the gradient from its first layer on
    for name, settings in FORMS.items():
        nats, relative = distance(came(policy, rows, **settings), expected)
        assert nats < 1e-5, name
        assert relative < 1e-5, name


@pytest.mark.parametrize("form", ["two_streams", "flat"])
def test_checkpointing_changes_nothing(new_policy, rows_of, naive_logps, form):
    policy, rows = new_policy().train(), rows_of("many groups")
    expected = expected_of(policy, rows, naive_logps)
    calls = []
    policy.base.model.language_model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    once = came(policy, rows, form=form)
    plain, calls[:] = len(calls), []
    policy.base.activation_checkpointing_enable({"use_reentrant": False})
    again = came(policy, rows, form=form)
    assert len(calls) == 2 * plain  # each layer was run again
    assert distance(once, expected)[1] < 1e-5
    assert distance(again, expected)[1] < 1e-5


def test_frozen_tower_is_run_once_for_all_passes_and_gives_the_same(new_policy, rows_of, naive_logps):
    policy, rows = new_policy(), rows_of("many groups")
    policy.base.model.visual.requires_grad_(False)
    expected = expected_of(policy, rows, naive_logps)
    calls = []
    policy.base.model.visual.register_forward_hook(lambda *_: calls.append(1))
    assert "model.visual.patch_embed.proj.weight" not in expected[1]
    for _ in range(2):
        nats, relative = distance(came(policy, rows), expected)
        assert nats < 1e-5
        assert relative < 1e-5
    assert len(calls) == 2  # the pictures, and the clip
    del rows
    policy.base.model.visual.requires_grad_(True)
    came(policy, rows_of("many groups"))
    assert len(calls) == 4


def test_lora_and_its_reference(new_policy, rows_of, naive_logps):
    """With an adapter: its gradients; with the adapter off: the model's own log-probabilities."""
    from mmrl.models.load import _with_lora, reference_mode
    from mmrl.recipe import LoraSection

    rows = rows_of("many groups")
    bare = new_policy()
    with torch.no_grad():
        plain = torch.cat([naive_logps(bare, *row, TEMPERATURE) for row in rows])
    policy = Policy(_with_lora(new_policy().base, LoraSection(r=4, alpha=8)))
    with torch.no_grad():
        for name, p in policy.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.2, generator=torch.Generator().manual_seed(len(name)))
    expected = expected_of(policy, rows, naive_logps)
    assert all("lora" in name for name in expected[1])
    for form in ("two_streams", "flat", "lines"):
        nats, relative = distance(came(policy, rows, form=form), expected)
        assert nats < 1e-5
        assert relative < 1e-5
    with reference_mode(policy, None) as reference:
        off = np.concatenate(GroupForward(TEMPERATURE, PAD).logps(reference, rows))
    np.testing.assert_allclose(off, plain.numpy(), atol=1e-5)
    assert np.abs(off - expected[0].numpy()).max() > 1e-2


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
    for form in ("two_streams", "flat", "lines"):
        logps = np.concatenate(GroupForward(1.0, PAD, form).logps(shared_policy, rows))
        np.testing.assert_allclose(logps, expected.numpy(), atol=1e-5)


@pytest.fixture
def all_in_float64(monkeypatch):
    """transformers' norms and its vision rotation compute in float32 whatever comes in, which floors any comparison at 1e-7."""
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl
    from transformers.models.qwen3_vl import modeling_qwen3_vl

    def norm(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    for module in (modeling_qwen2_5_vl, modeling_qwen3_vl):

        def rotate(q, k, cos, sin, half=module.rotate_half):
            cos, sin = cos.unsqueeze(-2).to(q.dtype), sin.unsqueeze(-2).to(q.dtype)
            return q * cos + half(q) * sin, k * cos + half(k) * sin

        monkeypatch.setattr(module, "apply_rotary_pos_emb_vision", rotate)
        for name in dir(module):
            if name.endswith("RMSNorm"):
                monkeypatch.setattr(getattr(module, name), "forward", norm)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_in_float64_nothing_but_rounding_is_left(all_in_float64, new_policy, rows_of, qwen3_world, naive_logps, family):
    policy, rows = (new_policy(), rows_of("many groups")) if family == "qwen2_5_vl" else qwen3_world
    policy.double()
    expected = expected_of(policy, rows, naive_logps)
    assert expected[0].dtype == torch.float64
    for name, settings in FORMS.items():
        nats, relative = distance(came(policy, rows, **settings), expected)
        assert nats < 1e-12, name
        assert relative < 1e-12, name


@pytest.fixture
def qwen3_world(qwen3_vl, make_qwen3_vl_prompts, picture_task, completion_ids):
    """A policy of its own and rows of a picture, of two pictures, of a clip beside a picture, and of text."""
    model, _ = qwen3_vl
    tasks = [picture_task("a", (56, 84)), picture_task("c", (84, 84), (56, 56)), picture_task("d", 4, (56, 56)), picture_task("e")]
    rows = [(p, ids) for p in make_qwen3_vl_prompts(tasks) for ids in completion_ids(4, [4, 1, 6])]
    return Policy(deepcopy(model)), rows


def test_qwen3_vl_with_deepstack(qwen3_world, naive_logps):
    policy, rows = qwen3_world
    expected = expected_of(policy, rows, naive_logps)
    assert any("deepstack_merger_list.1" in name and g.norm() > 1e-2 for name, g in expected[1].items())
    for name, settings in FORMS.items():
        nats, relative = distance(came(policy, rows, **settings), expected)
        assert nats < 1e-5, name
        assert relative < 1e-5, name


def test_the_check_sees_deepstack_features_dropped(monkeypatch, qwen3_world, naive_logps):
    policy, rows = qwen3_world
    expected = expected_of(policy, rows, naive_logps)
    embed = policy.embed
    monkeypatch.setattr(policy, "embed", lambda ids, prompts: (embed(ids, prompts)[0], {}))
    logps, found = came(policy, rows)
    assert (logps - expected[0]).abs().max() > 1e-3
    assert any(name not in found for name in expected[1] if "deepstack" in name)


# --- negative controls: one classic fault each ------------------------------------------------------------------------------------------


def positions_from_the_prompts_length(monkeypatch):
    """A completion that starts at P, as if a picture's tokens stood in a line."""

    def wrong(prompts, layout, device):
        right = PACK_PREFIXES(prompts, layout, device)
        return replace(right, last_positions=tuple(len(p.ids) - 1 for p in prompts))

    monkeypatch.setattr(forward, "pack_prefixes", wrong)


def positions_in_one_dimension(monkeypatch):
    """As of a text model: each token one past the one before it, completions past their prompt."""

    def wrong(prompts, layout, device):
        right = PACK_PREFIXES(prompts, layout, device)
        line = torch.cat([torch.arange(length) for length in right.lengths]).expand(3, 1, -1)
        return replace(right, positions=line, last_positions=right.lengths)

    monkeypatch.setattr(forward, "pack_prefixes", wrong)


def positions_that_run_on_along_the_stream(monkeypatch):
    def wrong(prefixes, rows):
        right = PACK_SEGMENTS(prefixes, rows)
        return replace(right, positions=right.positions[0, 0, 0] + torch.arange(len(right.targets)).expand(3, 1, -1))

    monkeypatch.setattr(forward, "pack_segments", wrong)


def completions_that_see_each_other(monkeypatch):
    """A plain causal mask."""
    monkeypatch.setattr(policy_module.Segments, "own", lambda self: Spans.causal([len(self.targets)], self.ids.device))


PACK_PREFIXES, PACK_SEGMENTS = forward.pack_prefixes, forward.pack_segments
FAULTS = (
    positions_from_the_prompts_length, positions_in_one_dimension, positions_that_run_on_along_the_stream, completions_that_see_each_other,
)  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_the_check_sees_a_fault(monkeypatch, new_policy, rows_of, naive_logps, fault):
    """Far outside the tolerance, not just past it."""
    policy, rows = new_policy(), rows_of("one group, ragged")
    expected = expected_of(policy, rows, naive_logps)
    fault(monkeypatch)
    nats, relative = distance(came(policy, rows), expected)
    assert nats > 1e-3
    assert relative > 1e-3


def test_the_check_sees_a_picture_encoded_without_gradient(monkeypatch, new_policy, rows_of, naive_logps):
    """Its log-probabilities are right and the tower's gradient is gone: only the comparison of gradients can see it."""
    policy, rows = new_policy(), rows_of("one group, ragged")
    expected = expected_of(policy, rows, naive_logps)
    monkeypatch.setattr(policy.base.model, "get_image_features", torch.no_grad()(policy.base.model.get_image_features))
    actual = came(policy, rows)
    assert (actual[0] - expected[0]).abs().max() < 1e-5
    assert "model.visual.patch_embed.proj.weight" in expected[1].keys() - actual[1].keys()


# --- the distribution, the cuts, other models -------------------------------------------------------------------------------------------


def test_padding_never_matters(shared_policy, rows_of):
    one, other = (GroupForward(1.0, pad, "lines").logps(shared_policy, rows_of("many groups")) for pad in (0, 99))
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_logps_and_entropy_rule_out_vision_tokens_and_obey_temperature(shared_policy, prompts):
    """Over the whole vocabulary, as completions of one token: probabilities sum to 1 without the two vision tokens, and the entropy is that
    of the same distribution."""
    vocabulary = np.setdiff1d(np.arange(512), shared_policy.banned_ids.numpy())
    rows = [(prompts["text"], np.array([token])) for token in vocabulary]
    with torch.no_grad():
        (part,) = GroupForward(2.0, PAD)(shared_policy, rows)
    cold = torch.from_numpy(np.concatenate(GroupForward(1.0, PAD).logps(shared_policy, rows)))
    assert part.rows == tuple(range(len(rows)))
    assert part.logps.exp().sum().item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(part.logps, (cold / 2).log_softmax(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(part.entropy, entropy(part.logps, temperature=1.0).expand(len(rows)), atol=1e-5, rtol=0)


def test_parts_keep_to_the_budget(shared_policy, rows_of, monkeypatch):
    """Rows of a part and tokens of a stream; what is larger by itself is forwarded by itself."""
    sizes = []
    monkeypatch.setattr(
        forward, "pack_segments", lambda prefixes, rows: sizes.append([len(c) for _, c in rows]) or PACK_SEGMENTS(prefixes, rows)
    )
    rows = rows_of("one group, ragged")  # 5, 1 and 3 tokens
    for settings, expected in (({"max_tokens": 4}, [[1, 3], [5]]), ({"max_rows": 2}, [[1, 3], [5]]), ({"max_rows": 1}, [[1], [3], [5]])):
        sizes.clear()
        GroupForward(1.0, PAD, **settings).logps(shared_policy, rows)
        assert sizes == expected


@pytest.mark.parametrize(("completion", "problem"), [([], "is empty"), ([4, None], "holds a picture or video token")])
def test_completions_that_cannot_be_forwarded(shared_policy, prompts, completion, problem):
    bad = np.array([shared_policy.layout.image_token_id if token is None else token for token in completion], np.int64)
    with pytest.raises(ValueError, match=f"row 1, task e: the completion {problem}"):
        list(GroupForward(1.0, PAD)(shared_policy, [(prompts["text"], np.array([3])), (prompts["text"], bad)]))


def test_no_rows(shared_policy):
    assert list(GroupForward(1.0, PAD)(shared_policy, [])) == []


def test_attention_that_takes_no_streams(new_policy, rows_of, naive_logps):
    """Eager attention is no part of transformers' interface: such a model is forwarded line by line."""
    model = new_policy().base
    policy, rows = Policy(type(model)._from_config(model.config, attn_implementation="eager")), rows_of("many groups")
    assert not policy.can_share
    nats, relative = distance(came(policy, rows, form="lines"), expected_of(policy, rows, naive_logps))
    assert nats < 1e-5
    assert relative < 1e-5


def test_a_forward_without_streams_is_the_models_own(new_policy, rows_of):
    """What is saved and what transformers itself would run does not know of streams."""
    policy = new_policy()
    assert "mmrl" not in str(policy.base.config.to_dict())
    ids = torch.from_numpy(rows_of("text only")[0][0].ids)[None]
    before = policy.base.model.language_model(input_ids=ids, use_cache=False).last_hidden_state
    policy.base.model.language_model.set_attn_implementation("sdpa")
    assert torch.equal(policy.base.model.language_model(input_ids=ids, use_cache=False).last_hidden_state, before)


@pytest.mark.parametrize("form", ["two_streams", "flat", "lines"])
def test_bfloat16_policy_gives_float32_logps_near_those_of_float32(new_policy, shared_policy, rows_of, form):
    rows = rows_of("many groups")
    logps, found = came(new_policy().to(torch.bfloat16), rows, form=form, max_rows=2)
    exact = np.concatenate(GroupForward(TEMPERATURE, PAD).logps(shared_policy, rows))
    assert np.abs(logps.numpy() - exact).mean() < 0.1  # bfloat16 keeps 8 bits
    assert all(g.isfinite().all() for g in found.values())


def test_half_precision_gradients_of_a_prefix_are_summed_in_float32():
    """1 and then 256 times 1/256: in bfloat16 each of the small ones would be lost."""
    root = torch.zeros(1, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    leaves = forward._Leaves([(root * 1, root * 1)])
    for gradient in (1.0, *[1 / 256] * 256):
        (leaves.keys_values[0][0] * gradient).sum().backward()
        leaves.gather()
    leaves.backward()
    assert root.grad is not None
    assert root.grad.item() == 2.0


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
    expected = expected_of(policy, [(bare, ids) for _, ids in rows], naive_logps)
    nats, relative = distance(came(policy, rows), expected)
    assert nats < 1e-5
    assert relative < 1e-5
