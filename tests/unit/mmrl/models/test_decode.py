"""Token-by-token decoding against transformers' own full forward, with rows leaving; and what it keeps and moves while it runs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmrl.models import decode
from mmrl.models.decode import DecodeContext, SharedDecoder, plain_attention
from mmrl.models.decode_plain import PlainDecoder
from mmrl.models.policy import Policy

G, TOKENS = 3, 6


@pytest.fixture(params=["qwen2_5_vl", "qwen3_vl"])
def family(request, shared_policy, make_prompts, qwen3_vl, make_qwen3_vl_prompts, picture_task):
    """(policy, prompts), ragged: no picture, one, two, a clip; two prompts of one length, and two that differ by a few tokens."""
    policy, make = (shared_policy, make_prompts) if request.param == "qwen2_5_vl" else (Policy(qwen3_vl[0]), make_qwen3_vl_prompts)
    return policy, make([
        picture_task("a", (64, 96)),
        picture_task("b", text="Go."),
        picture_task("c", (96, 96), (64, 64)),
        picture_task("d", (64, 96), text="Go from T to O."),
        picture_task("e", (64, 128), text="Which way? Up, down, left, right."),
        picture_task("f", 4, text="What moves?", fps=8.0),  # both frame pairs at time position 0, where transformers agrees
    ])  # fmt: skip


def logits_of(policy, prompt, ids):
    """float32 [T, V]: transformers' own logits of each completion token."""
    full = torch.from_numpy(np.concatenate([prompt.ids, ids]))[None]
    media = {name: torch.from_numpy(value) for name, value in prompt.mm_inputs.items()}
    kinds = (full == policy.layout.image_token_id).long() + 2 * (full == policy.layout.video_token_id).long()
    out = policy.base(input_ids=full, attention_mask=torch.ones_like(full), mm_token_type_ids=kinds, use_cache=False, **media)
    return out.logits[0, len(prompt.ids) - 1 : -1]


@torch.no_grad()
def largest_error(policy, prompts, build, completion_ids):
    """Of all logits of G forced completions of ragged lengths a prompt; after each token the rows that ended leave."""
    lengths = np.random.default_rng(5).integers(1, TOKENS + 1, len(prompts) * G)
    lengths[:G] = [1, 2, 1]  # this prompt leaves first
    lengths[-1] = TOKENS
    ids = completion_ids(7, [int(length) for length in lengths])
    expected = [logits_of(policy, prompts[row // G], some) for row, some in enumerate(ids)]
    decoder = build(policy, prompts)
    logits, errors = decoder.first(), []
    alive = (decoder.order[:, None] * G + np.arange(G)).ravel()
    logits = logits.repeat_interleave(G, 0)
    for step in range(TOKENS):
        errors += [(logits[place] - expected[row][step]).abs().max().item() for place, row in enumerate(alive)]
        if step + 1 == TOKENS:
            break
        kept = np.flatnonzero(lengths[alive] > step + 1)
        if step == 0:
            decoder.select(kept // G)
        elif len(kept) < len(alive):
            decoder.select(kept)
        alive = alive[kept]
        logits = decoder.next(torch.tensor([ids[row][step] for row in alive]))
    assert len(errors) == lengths.sum() + (len(alive) == 0)
    return max(errors)


def shared(policy, prompts, stream_tokens=8192):
    return SharedDecoder(policy, prompts, len(prompts) * G, TOKENS, stream_tokens)


def fixed_shapes(policy, prompts):
    """As on a device: own keys in steps of 4 under a mask."""
    decoder = shared(policy, prompts)
    decoder.context = DecodeContext(decoder.context.blocks, len(prompts) * G, TOKENS, own_width_step=4)
    return decoder


BUILDS = {
    "shared": shared,
    "each prompt read alone": lambda *args: shared(*args, stream_tokens=1),
    "fixed shapes": fixed_shapes,
    "transformers' cache": lambda policy, prompts: PlainDecoder(policy, prompts, 0),
}


@pytest.mark.parametrize("build", BUILDS)
def test_logits_are_those_of_the_full_forward(family, completion_ids, build):
    assert largest_error(*family, BUILDS[build], completion_ids) < 1e-5


def test_the_scores_in_full_give_the_same(family, completion_ids, monkeypatch):
    """The form of other devices."""
    monkeypatch.setattr(decode, "attention", plain_attention)
    assert largest_error(*family, fixed_shapes, completion_ids) < 1e-5


def break_positions(decoder):
    decoder.positions += 1


def break_mask(decoder):
    filled_up = [block for block in decoder.context.blocks if block.bias is not None]
    assert filled_up
    for block in filled_up:
        block.bias = None


def break_prompts(decoder):
    longest = decoder.context.blocks[-1]
    longest.values[0] = longest.values[0].roll(1, dims=2)


@pytest.mark.parametrize("fault", [break_positions, break_mask, break_prompts])
def test_the_comparison_sees_faults(family, completion_ids, fault):
    def build(policy, prompts):
        decoder = shared(policy, prompts)
        fault(decoder)
        return decoder

    assert largest_error(*family, build, completion_ids) > 1e-3


@torch.no_grad()
def test_prompts_are_stored_once_and_leave_with_their_last_row(family):
    """Keys and values of as many tokens as the prompts have, an eighth more at most, whatever the group's size; half of them after the
    other prompts' rows have left."""
    policy, prompts = family
    text = policy.base.config.get_text_config()
    per_token = 2 * text.num_key_value_heads * (text.hidden_size // text.num_attention_heads) * text.num_hidden_layers

    def stored(decoder):
        blocks = decoder.context.blocks
        tensors = [x for block in blocks for x in (*block.keys, *block.values)]
        assert all(x.untyped_storage().nbytes() == x.nbytes for x in tensors)  # no view that holds more
        return sum(x.numel() for x in tensors) / per_token

    lengths = np.array([len(prompt.ids) - 1 for prompt in prompts])
    for generations in (2, 50):
        decoder = SharedDecoder(policy, prompts, len(prompts) * generations, TOKENS, 8192)
        before = stored(decoder)
        assert lengths.sum() <= before <= lengths.sum() * 9 / 8
        decoder.first()
        decoder.select(np.repeat(np.arange(len(prompts)), generations))
        decoder.next(torch.zeros(len(decoder.order), dtype=torch.long))
        assert stored(decoder) == before
        own = sum(x.numel() for x in (*decoder.context.own_keys, *decoder.context.own_values))
        assert own == len(prompts) * generations * TOKENS * per_token
        stay = [0, 3]
        decoder.select(np.flatnonzero(np.isin(decoder.order, stay)))
        assert lengths[stay].sum() <= stored(decoder) <= lengths[stay].sum() * 9 / 8
        assert set(decoder.order) == set(stay)


class Watch(TorchDispatchMode):
    """Names and shapes of all that a device would be asked to do."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.calls.append((str(func), *(tuple(x.shape) for x in args if isinstance(x, torch.Tensor))))
        return out


@torch.no_grad()
def test_a_step_has_fixed_shapes_and_buffers_and_waits_for_nothing(family, monkeypatch):
    """Steps 2 to 4 of 4 that see the same width of own keys: one list of calls, no number read back, no buffer moved."""
    monkeypatch.setattr(decode, "attention", plain_attention)
    policy, prompts = family
    decoder = fixed_shapes(policy, prompts)
    decoder.first()
    decoder.select(np.repeat(np.arange(len(prompts)), G))
    context = decoder.context
    fixed = [*context.own_keys, *context.own_values, context.slot, decoder.positions]
    fixed += [x for block in context.blocks for x in (*block.keys, *block.values)]
    places = [x.data_ptr() for x in fixed]
    seen = []
    for _ in range(3):
        ids = torch.zeros(len(decoder.order), dtype=torch.long)
        with Watch() as watch:
            decoder.next(ids)
        seen.append(watch.calls)
    assert seen[0] == seen[1] == seen[2]
    names = {call[0] for call in seen[0]}
    assert "aten.index_copy_.default" in names
    assert not {name for name in names if any(wait in name for wait in ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select"))}
    now = [*context.own_keys, *context.own_values, context.slot, decoder.positions]
    now += [x for block in context.blocks for x in (*block.keys, *block.values)]
    assert places == [x.data_ptr() for x in now]


@torch.no_grad()
def test_prompts_of_one_token_and_of_one_length(new_policy, make_prompts, picture_task, completion_ids):
    """A prompt of one token has no prefix at all; equal prompts share a block without a mask."""
    policy = new_policy().eval()
    long = make_prompts([picture_task("a", text="Go."), picture_task("b", text="Go."), picture_task("c", (64, 96))])
    prompts = [*long, *[replace(long[0], ids=long[0].ids[-1:])] * 2]
    assert largest_error(policy, prompts, shared, completion_ids) < 1e-5
    blocks = shared(policy, prompts).context.blocks
    assert [(len(block.counts), block.width, block.bias) for block in blocks] == [
        (2, 0, None), (2, len(long[0].ids) - 1, None), (1, len(long[2].ids) - 1, None),
    ]  # fmt: skip
