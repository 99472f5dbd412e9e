"""What is known of a row before it is trained, against transformers' own forward: one row at a time, the whole vocabulary in float64."""

import numpy as np
import pytest
import torch

from mmrl.models.forward import GroupForward

TEMPERATURE = 0.8
LENGTHS = (4, 1, 6, 2, 5)
PROMPTS = (0, 0, 1, 1, 1)


@pytest.fixture(scope="module")
def rows(make_prompts, maze_tasks, completion_ids):
    prompts = make_prompts([maze_tasks.task(maze_tasks.key(n)) for n in range(2)])
    return [(prompts[n], ids) for n, ids in zip(PROMPTS, completion_ids(3, LENGTHS), strict=True)]


@pytest.fixture(scope="module")
def others(make_prompts, maze_tasks):
    """Two other mazes, by turns, so rows of a view do not lie in the order of the rows."""
    made = make_prompts([maze_tasks.task(maze_tasks.key(n)) for n in (7, 8)])
    return [made[n % 2] for n in range(len(LENGTHS))]


def distribution(policy, prompt, ids):
    """Log-probabilities of the whole vocabulary, float64 [T, V]."""
    full = torch.from_numpy(np.concatenate([prompt.ids, ids]))[None]
    media = {name: torch.from_numpy(value) for name, value in prompt.mm_inputs.items()}
    kinds = (full == policy.layout.image_token_id).long()
    with torch.no_grad():
        out = policy.base(input_ids=full, attention_mask=torch.ones_like(full), mm_token_type_ids=kinds, use_cache=False, **media)
    logits = (out.logits[0, len(prompt.ids) - 1 : -1].double() / TEMPERATURE).index_fill(1, policy.banned_ids, -1e30)
    return logits.log_softmax(-1)


@pytest.mark.parametrize("form", ["two_streams", "flat", "lines"])
@pytest.mark.parametrize("max_rows", [1, 2, 8])
def test_signals_equal_the_plain_form(shared_policy, rows, others, form, max_rows):
    forward = GroupForward(TEMPERATURE, 0, form, max_rows=max_rows)
    came = forward.signals(shared_policy, rows, {"other": others}, {"other"})
    for signals, (prompt, ids), other in zip(came, rows, others, strict=True):
        p, q = distribution(shared_policy, prompt, ids), distribution(shared_policy, other, ids)
        token = torch.from_numpy(ids)[:, None]
        half = ((p.exp() - q.exp()) * (p - q)).sum(-1) / 2
        expected = {
            "old_logps": p.gather(1, token)[:, 0], "old_entropy": -(p.exp() * p).sum(-1), "view_kl:other": half,
            "view:other": q.gather(1, token)[:, 0], "view_entropy:other": -(q.exp() * q).sum(-1),
        }  # fmt: skip
        assert signals.keys() == expected.keys()
        assert half.max() > 1e-3  # the pictures matter
        for name, values in expected.items():
            assert signals[name].dtype == np.float32
            np.testing.assert_allclose(signals[name], values.numpy(), atol=3e-5, err_msg=name)


def test_the_divergence_is_the_same_either_way_round(shared_policy, rows, others):
    forward = GroupForward(TEMPERATURE, 0)
    there = forward.signals(shared_policy, rows, {"v": others}, {"v"})
    back = forward.signals(shared_policy, [(o, ids) for o, (_, ids) in zip(others, rows, strict=True)], {"v": [p for p, _ in rows]}, {"v"})
    for one, other in zip(there, back, strict=True):
        np.testing.assert_allclose(one["view_kl:v"], other["view_kl:v"], atol=1e-5)


class Counted:
    """Stands before a policy and counts the completion tokens that it forwards."""

    def __init__(self, policy):
        self.policy, self.tokens = policy, 0

    def __getattr__(self, name):
        return getattr(self.policy, name)

    def __call__(self, stream, *arguments):
        self.tokens += sum(stream.lengths)
        return self.policy(stream, *arguments)


def test_a_view_that_is_the_rows_own_prompt_costs_nothing_and_differs_by_nothing(shared_policy, rows, others):
    policy = Counted(shared_policy)
    views = [prompt if n != 2 else others[n] for n, (prompt, _) in enumerate(rows)]
    came = GroupForward(TEMPERATURE, 0, max_rows=2).signals(policy, rows, {"v": views}, {"v"})
    assert policy.tokens == sum(LENGTHS) + LENGTHS[2]
    for n, signals in enumerate(came):
        same = np.array_equal(signals["view:v"], signals["old_logps"]) and not signals["view_kl:v"].any()
        assert same == (n != 2)


def test_nothing_carries_a_gradient_and_the_mode_comes_back(new_policy, rows, others):
    policy = new_policy().train()
    GroupForward(TEMPERATURE, 0).signals(policy, rows, {"v": others}, {"v"})
    assert policy.training
    assert all(p.grad is None for p in policy.parameters())
