import itertools
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mmrl.engines import hf
from mmrl.engines.hf import HFEngine
from mmrl.errors import EngineError
from mmrl.models.forward import GroupForward
from mmrl.models.load import load_policy
from mmrl.models.policy import Policy
from mmrl.models.tiny import build_tokenizer
from mmrl.protocols import Sampling
from mmrl.recipe import ModelSection


@pytest.fixture
def prompts(make_prompts, picture_task):
    """Ragged: one picture, none, two, a wide one with a longer question."""
    return make_prompts([
        picture_task("a", (56, 84)),
        picture_task("b", text="Go."),
        picture_task("c", (84, 84), (56, 56)),
        picture_task("d", (56, 140), text="Which way? Up, down, left, right."),
    ])  # fmt: skip


@pytest.fixture
def engine(processor, shared_policy):
    def build(policy=shared_policy, version=0, **fields):
        made = HFEngine(**fields)
        made.attach(processor)
        made.load_policy(policy, version)
        return made

    return build


def raise_logits(policy, ids, by):
    """From now on, these ids' logits are higher by so much; keep the handle's `remove`."""
    return policy.base.lm_head.register_forward_hook(
        lambda _module, _args, out: out.index_add(-1, ids, by.expand(*out.shape[:-1], len(ids)))
    )


@pytest.fixture
def ending_policy(new_policy, processor):
    """A policy that ends a completion with a probability of about a quarter at each token."""
    policy, ends = new_policy(), processor.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    handle = raise_logits(policy, torch.tensor(ends), torch.tensor(4.5))
    yield policy
    handle.remove()


@pytest.fixture
def scripted(new_policy):
    """`scripted([7, 8, 9])`: a policy whose every row says these ids, in this order, then ends."""
    policy = new_policy()

    def build(ids):
        script = iter([*ids, policy.base.generation_config.eos_token_id[0]])

        def say(_module, _args, out):
            return torch.full_like(out, -100.0).index_fill(-1, torch.tensor([next(script)]), 100.0)

        policy.base.lm_head._forward_hooks.clear()
        policy.base.lm_head.register_forward_hook(say)
        return policy

    return build


@pytest.fixture
def batch_sizes():
    """`batch_sizes(engine, …)`: tokens in each forward of the language model while it generates: all prompts but their last tokens, the
    last tokens, then one a row."""

    def watch(engine, prompts, num_generations, sampling):
        sizes = []
        handle = engine._policy.base.model.language_model.register_forward_pre_hook(
            lambda _module, _args, kwargs: sizes.append(kwargs["inputs_embeds"].shape[:2].numel()), with_kwargs=True
        )
        out = engine.generate(prompts, num_generations, sampling)
        handle.remove()
        return sizes, flat(out)

    return watch


def prefix_tokens(prompts):
    return sum(len(prompt.ids) - 1 for prompt in prompts)


def flat(groups):
    return [completion for group in groups for completion in group]


def ids_of(groups):
    return [[completion.ids.tolist() for completion in group] for group in groups]


@pytest.fixture(params=["qwen2_5_vl", "qwen3_vl", "eager"])
def family(request, engine, shared_policy, prompts, qwen3_vl, make_qwen3_vl_prompts):
    """(engine, policy, prompts) of a family, and of one whose attention takes no streams."""
    if request.param == "qwen3_vl":
        model, processor = qwen3_vl
        policy = Policy(model)
        made = engine(policy)
        made.attach(processor)
        return made, policy, make_qwen3_vl_prompts([prompt.task for prompt in prompts])
    if request.param == "qwen2_5_vl":
        return engine(), shared_policy, prompts
    eager = type(shared_policy.base)._from_config(deepcopy(shared_policy.base.config), attn_implementation="eager")
    eager.load_state_dict(shared_policy.base.state_dict())
    eager.generation_config = shared_policy.base.generation_config
    policy = Policy(eager.eval())
    assert not policy.can_share
    return engine(policy), policy, prompts


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_sampling_logps_are_the_trainers(family, temperature):
    """Rows of different prompts, some finished and gone: what the engine reports is what the update will compute."""
    engine, policy, prompts = family
    groups = engine.generate(prompts, 3, Sampling(temperature, max_completion_length=7))
    rows = [(prompt, c.ids) for prompt, group in zip(prompts, groups, strict=True) for c in group]
    logps = np.concatenate(GroupForward(temperature, 0, "two_streams" if policy.can_share else "lines").logps(policy, rows))
    reported = np.concatenate([c.sampling_logps for group in groups for c in group])
    assert reported.dtype == np.float32
    np.testing.assert_allclose(reported, logps, rtol=0, atol=1e-4)


def test_sampling_logps_stay_the_trainers_when_rows_leave(engine, ending_policy, prompts):
    """The hook that makes rows end is not in the trainer, so the expected values come from an engine that keeps every row to the end."""
    sampling = Sampling(max_completion_length=8)
    left = engine(ending_policy, compact_below=1.0).generate(prompts, 5, sampling)
    kept = engine(ending_policy, compact_below=0.0).generate(prompts, 5, sampling)
    assert ids_of(left) == ids_of(kept)
    for one, other in zip(flat(left), flat(kept), strict=True):
        np.testing.assert_allclose(one.sampling_logps, other.sampling_logps, rtol=0, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_vision_tokens_are_never_sampled(engine, new_policy, prompts, temperature):
    policy = new_policy()
    raise_logits(policy, policy.banned_ids, torch.tensor(1e4))
    groups = engine(policy).generate(prompts, 2, Sampling(temperature, max_completion_length=5))
    assert not np.isin(np.concatenate([c.ids for group in groups for c in group]), policy.banned_ids.numpy()).any()
    assert all(np.isfinite(c.sampling_logps).all() for group in groups for c in group)


def test_a_draw_depends_on_its_key_alone(engine, ending_policy, prompts):
    """Other prompts in the batch, the batch's size and when rows leave it change no id."""
    sampling = Sampling(max_completion_length=6, seed=3, step=7)
    expected = ids_of(engine(ending_policy).generate(prompts, 5, sampling))
    for fields in ({"max_rows": 1}, {"max_rows": 3}, {"max_rows": 5}, {"max_rows": 11}, {"compact_below": 0.0}, {"compact_below": 1.0}):
        assert ids_of(engine(ending_policy, **fields).generate(prompts, 5, sampling)) == expected, fields
    for n, prompt in enumerate(prompts):
        assert ids_of(engine(ending_policy).generate([prompt], 5, sampling)) == [expected[n]]
    fewer = ids_of(engine(ending_policy).generate(prompts[::-1], 2, sampling))[::-1]
    assert fewer == [group[:2] for group in expected]


def test_a_draw_depends_on_its_whole_key(engine, prompts):
    sampling = Sampling(max_completion_length=6)
    twin = replace(prompts[0], task=replace(prompts[0].task, id="twin"))  # the same words and pixels under another name
    base, other_task = ids_of(engine().generate([prompts[0], twin], 2, sampling))
    (other_seed,) = ids_of(engine().generate(prompts[:1], 2, replace(sampling, seed=1)))
    (other_step,) = ids_of(engine().generate(prompts[:1], 2, replace(sampling, step=1)))
    drawn = [*base, *other_task, *other_seed, *other_step]
    assert len({tuple(ids) for ids in drawn}) == len(drawn) == 8


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize(("sampling", "all_differ"), [(Sampling(), True), (Sampling(2.0, top_k=6), False)])
def test_finished_rows_leave_the_batch(engine, ending_policy, prompts, batch_sizes, monkeypatch, sampling, all_differ, merge):
    """With compact_below=1 a forward has exactly the rows that still run: those of completions longer than the tokens so far, once for
    completions of a prompt whose tokens were the same so far, where those are merged. What is drawn is what each row draws alone."""
    monkeypatch.setattr(hf, "MERGE_ON", ("cpu",) if merge else ())
    sampling = replace(sampling, max_completion_length=8)
    sizes, completions = batch_sizes(engine(ending_policy, compact_below=1.0), prompts, 6, sampling)
    running = [[(n // 6, *c.ids[:tokens]) for n, c in enumerate(completions) if len(c.ids) > tokens] for tokens in range(1, 8)]
    assert sizes == [prefix_tokens(prompts), 4] + [len(set(rows)) if merge else len(rows) for rows in running if rows]
    assert all(len(set(rows)) == len(rows) for rows in running) == all_differ
    assert sizes[2] > sizes[4] > 0
    alone = flat(engine(ending_policy, max_rows=1).generate(prompts, 6, sampling))
    assert [c.ids.tolist() for c in completions] == [c.ids.tolist() for c in alone]
    for one, other in zip(completions, alone, strict=True):
        np.testing.assert_allclose(one.sampling_logps, other.sampling_logps, rtol=0, atol=1e-5)


def test_compact_below_sets_when_rows_leave(engine, ending_policy, prompts, batch_sizes):
    """At 0 never; at 0.5 once more than half of the batch has finished."""
    sampling = Sampling(max_completion_length=8)
    never, _ = batch_sizes(engine(ending_policy, compact_below=0.0), prompts, 6, sampling)
    half, _ = batch_sizes(engine(ending_policy, compact_below=0.5), prompts, 6, sampling)
    assert len(set(never[2:])) == 1
    assert half[2] == never[2] > 12
    assert len(set(half[2:])) > 1
    assert all(later == earlier or later < earlier / 2 for earlier, later in itertools.pairwise(half[2:]))


def test_no_batch_is_larger_than_max_rows(engine, prompts, batch_sizes):
    """Four groups of 5: whole groups while they fit, else pieces of one."""
    sampling = Sampling(max_completion_length=2)
    for max_rows, expected in ((20, [4, 20]), (12, [2, 10, 2, 10]), (5, [1, 5] * 4), (3, [1, 3, 1, 2] * 4)):
        sizes, _ = batch_sizes(engine(max_rows=max_rows, compact_below=0.0), prompts, 5, sampling)
        steps = [size for place, size in enumerate(sizes) if place % 3]
        assert steps == expected
        assert sum(sizes[::3]) == prefix_tokens(prompts) * (2 if max_rows == 3 else 1)


def test_prompts_are_read_under_a_token_budget(engine, prompts, batch_sizes):
    """Together while they fit, the shorter first; one that is longer than the budget alone. The draws stay."""
    sampling = Sampling(max_completion_length=2)
    lengths = sorted(len(prompt.ids) - 1 for prompt in prompts)
    whole, expected = batch_sizes(engine(), prompts, 2, sampling)
    for budget, streams in ((lengths[0] + lengths[1], [lengths[0] + lengths[1], *lengths[2:]]), (1, lengths)):
        sizes, completions = batch_sizes(engine(prefill_tokens=budget), prompts, 2, sampling)
        assert sizes == [*streams, *whole[1:]]
        assert [c.ids.tolist() for c in completions] == [c.ids.tolist() for c in expected]


def test_greedy_is_that_of_transformers_generate(family):
    engine, policy, prompts = family
    groups = engine.generate(prompts, 2, Sampling(temperature=0.0, max_completion_length=8))
    for prompt, (completion, twin) in zip(prompts, groups, strict=True):
        ids = torch.from_numpy(prompt.ids)[None]
        media = {name: torch.from_numpy(value) for name, value in prompt.mm_inputs.items()}
        expected = policy.base.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=(ids == policy.layout.image_token_id).long(),
            do_sample=False, max_new_tokens=8, suppress_tokens=policy.banned_ids.tolist(), **media,
        )  # fmt: skip
        assert completion.ids.tolist() == twin.ids.tolist() == expected[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("family", ["qwen2_5_vl", "eager"], indirect=True)
def test_attention_that_takes_no_streams_samples_the_same(family, engine, prompts, caplog):
    """Same weights, same draws; the reason for the slower way is told once."""
    made, policy, _ = family
    sampling = Sampling(max_completion_length=6)
    assert ids_of(made.generate(prompts, 5, sampling)) == ids_of(engine().generate(prompts, 5, sampling))
    caplog.clear()
    fresh = HFEngine()
    fresh.load_policy(policy, 0)
    fresh.load_policy(policy, 1)
    assert ["takes no streams" in record.message for record in caplog.records] == ([] if policy.can_share else [True])


def test_top_k_of_one_is_greedy(engine, prompts):
    greedy = engine().generate(prompts, 2, Sampling(temperature=0.0, max_completion_length=6))
    assert ids_of(engine().generate(prompts, 2, Sampling(top_k=1, max_completion_length=6))) == ids_of(greedy)
    assert ids_of(engine().generate(prompts, 2, Sampling(top_p=1e-6, max_completion_length=6))) == ids_of(greedy)
    assert greedy[0][0].ids.tolist() == greedy[0][1].ids.tolist()


@pytest.mark.parametrize("stop", ["left", "eft rig", "left right up", "t", "right up"])
def test_stop_string_ends_a_completion_wherever_it_is_split(engine, scripted, processor, make_prompts, picture_task, stop):
    """Over bytes, whole words, and parts of words: the completion ends with the first token that completes the string."""
    tokenizer = processor.tokenizer
    for script in ([*tokenizer("go left right up down")["input_ids"]], tokenizer.convert_tokens_to_ids(list("goĠleftĠrightĠupĠdown"))):
        spoken = [tokenizer.decode(script[: n + 1]) for n in range(len(script))]
        expected = next(n + 1 for n, text in enumerate(spoken) if stop in text)
        ((completion,),) = engine(scripted(script)).generate(make_prompts([picture_task("a")]), 1, Sampling(stop=("no", stop)))
        assert completion.ids.tolist() == script[:expected]
        assert completion.finish == "stop"
        assert stop in completion.text


def test_a_long_stop_string_in_single_bytes(engine, scripted, processor, make_prompts, picture_task):
    """24 letters, 27 bytes, 27 tokens."""
    stop = "STOP ñ here, at once: ñ ñ"
    pieces = processor.tokenizer.convert_tokens_to_ids([c for word in processor.tokenizer.tokenize("x" + stop) for c in word])
    assert processor.tokenizer.decode(pieces) == "x" + stop
    assert len(pieces) == 1 + len(stop.encode())
    ((completion,),) = engine(scripted([*pieces, *pieces])).generate(make_prompts([picture_task("a")]), 1, Sampling(stop=(stop,)))
    assert completion.ids.tolist() == pieces


def test_rows_stop_one_by_one_at_a_stop_string(engine, prompts):
    """Each row is as without the stop string, cut after the first token that completes it."""
    sampling = Sampling(max_completion_length=6)
    free = flat(engine().generate(prompts, 4, sampling))
    tokenizer = engine()._tokenizer
    stop = tokenizer.decode(free[0].ids[2:3])
    stopped = flat(engine().generate(prompts, 4, replace(sampling, stop=(stop,))))
    for one, other in zip(free, stopped, strict=True):
        hits = [n + 1 for n in range(len(one.ids)) if stop in tokenizer.decode(one.ids[: n + 1])]
        assert other.ids.tolist() == one.ids[: hits[0] if hits else None].tolist()
        assert other.finish == ("stop" if hits else one.finish)
    assert len({c.finish for c in stopped}) == 2


def test_completion_says_why_it_ended(engine, ending_policy, prompts, processor):
    completions = flat(engine(ending_policy, version=5).generate(prompts, 6, Sampling(max_completion_length=4)))
    ends = processor.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert {c.finish for c in completions} == {"stop", "length"}
    for c in completions:
        assert c.policy_version == 5
        assert c.ids.dtype == np.int64
        assert len(c.ids) == len(c.sampling_logps)
        assert (c.ids[-1] in ends) == (c.finish == "stop")
        assert not np.isin(c.ids[:-1], ends).any()
        assert c.finish == "stop" or len(c.ids) == 4
        assert "<|im_end|>" not in c.text


def test_completions_of_one_token(engine, prompts, batch_sizes):
    sizes, completions = batch_sizes(engine(), prompts, 2, Sampling(max_completion_length=1))
    assert [len(c.ids) for c in completions] == [1] * 8
    assert sizes == [prefix_tokens(prompts), 4]  # reading the prompts is all there is


def test_frequencies_are_the_probabilities(engine, shared_policy, prompts):
    """4,000 keyed draws of a first token against the trainer's own probabilities: each count within 5 standard deviations, tokens of fewer
    than 5 expected draws together. A fair sampler fails at less than 1 seed in 1,000."""
    prompt, draws = prompts[0], 4000
    (group,) = engine(max_rows=draws).generate([prompt], draws, Sampling(temperature=1.3, max_completion_length=1))
    vocabulary = np.setdiff1d(np.arange(512), shared_policy.banned_ids.numpy())
    logps = GroupForward(1.3, 0).logps(shared_policy, [(prompt, np.array([token])) for token in vocabulary])
    probs = np.exp(np.concatenate(logps).astype(np.float64))
    counts = np.bincount([c.ids[0] for c in group], minlength=512)[vocabulary]
    assert counts.sum() == draws
    common = draws * probs >= 5
    counts, probs = np.append(counts[common], counts[~common].sum()), np.append(probs[common], probs[~common].sum())
    assert len(probs) > 100
    assert (np.abs(counts - draws * probs) < 5 * np.sqrt(draws * probs * (1 - probs))).all()


def test_no_prompts(engine):
    assert engine().generate([], 4, Sampling()) == []


def test_training_mode_is_given_back(engine, new_policy, prompts):
    policy = new_policy()
    for mode in (True, False):
        policy.train(mode)
        engine(policy).generate(prompts[:1], 1, Sampling(max_completion_length=1))
        assert policy.training == mode


def test_a_policy_whose_logits_are_not_finite(engine, new_policy, prompts):
    policy = new_policy().train()
    with torch.no_grad():
        policy.base.model.language_model.norm.weight[3] = float("nan")
    for temperature in (0.0, 1.0):
        with pytest.raises(EngineError, match="logits are not finite"):
            engine(policy).generate(prompts, 1, Sampling(temperature))
        assert policy.training


def test_checkpointing_policy_samples_the_same(engine, tiny_folder, prompts):
    """Checkpointing forbids the cache while training; sampling is not training."""
    policy, _ = load_policy(ModelSection(path=str(tiny_folder), gradient_checkpointing=True))
    sampling = Sampling(max_completion_length=4)
    assert ids_of(engine(policy.train()).generate(prompts, 2, sampling)) == ids_of(engine().generate(prompts, 2, sampling))


def test_bfloat16_policy_samples(engine, new_policy, prompts):
    groups = engine(new_policy().to(torch.bfloat16)).generate(prompts, 2, Sampling(max_completion_length=4))
    assert all(c.sampling_logps.dtype == np.float32 and (c.sampling_logps < 0).all() for group in groups for c in group)


@pytest.mark.parametrize(
    ("count", "fields", "message"),
    [
        (0, {}, "got 0 of 256"),
        (1, {"max_completion_length": 0}, "got 1 of 0"),
        (1, {"temperature": -1.0}, "temperature must be >= 0 and finite; got -1"),
        (1, {"temperature": float("nan")}, "temperature must be >= 0 and finite; got nan"),
        (1, {"top_p": 0.0}, "0 < top_p <= 1"),
        (1, {"top_k": -1}, "top_k >= 0; got 1.0 and -1"),
        (1, {"stop": ("a", "")}, "stop holds an empty string"),
    ],
)
def test_settings_that_no_distribution_has(engine, prompts, count, fields, message):
    with pytest.raises(ValueError, match=message):
        engine().generate(prompts, count, Sampling(**fields))


@pytest.mark.parametrize("fields", [{"max_rows": 0}, {"prefill_tokens": 0}, {"compact_below": 1.1}, {"compact_below": -0.1}])
def test_fields_out_of_range(fields):
    with pytest.raises(ValueError, match=rf"{next(iter(fields))} must be .*; got {next(iter(fields.values()))}"):
        HFEngine(**fields)


def test_generate_before_it_has_a_policy(prompts):
    with pytest.raises(EngineError, match="before attach and load_policy"):
        HFEngine().generate(prompts, 1, Sampling())


def test_a_model_without_an_end(engine, new_policy, prompts, tiny_shape):
    policy, tokenizer = new_policy(), build_tokenizer(tiny_shape.vocab_size)
    policy.base.generation_config.eos_token_id = tokenizer.eos_token = None
    endless = engine(policy)
    endless.attach(SimpleNamespace(tokenizer=tokenizer))
    with pytest.raises(EngineError, match=r"name no end token .* set one in generation_config\.json"):
        endless.generate(prompts, 1, Sampling())
