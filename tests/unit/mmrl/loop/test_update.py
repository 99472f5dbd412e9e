"""The gradient of an update against a loss written out plainly: one row at a time, transformers' own forward, sums in Python."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from mmrl.aggregate import token_weights
from mmrl.batch import TermOutput
from mmrl.errors import RecipeError
from mmrl.loop.update import Passes, TokenMeans, WeightedTerm, accumulate, arm_grad_norms, reduce_means, row_of
from mmrl.losses.cispo import CappedISPolicy, ClippedISPolicy
from mmrl.losses.clipped_surrogate import ClippedSurrogate
from mmrl.losses.entropy_bonus import EntropyBonus
from mmrl.losses.gspo import GSPO
from mmrl.losses.kl import KLToReference
from mmrl.models.forward import GroupForward
from mmrl.optim import Optimizer
from mmrl.recipe import OptimSection
from mmrl.types import Completion, Rollout, Sample

LENGTHS = (4, 1, 6, 2, 5, 3, 3, 7)
"""Completion tokens of eight rows: prompts 0 0 0 1 1 1 2 2."""
PROMPTS = (0, 0, 0, 1, 1, 1, 2, 2)
ADVANTAGES = (1.0, -0.5, -0.5, 0.0, 0.0, 0.0, 2.0, -2.0)
TEMPERATURE = 0.8
BETA, BONUS = 0.3, 0.1
L_MAX = 9


def forward_of(form="two_streams", **settings):
    return GroupForward(TEMPERATURE, 0, form, **settings)


@pytest.fixture(scope="module")
def world(shared_policy, make_prompts, maze_tasks, completion_ids):
    """Rows, with old and reference log-probabilities that differ from the policy's: ratios on both sides of the clip."""
    prompts = make_prompts([maze_tasks.task(maze_tasks.key(n)) for n in range(3)])
    rng = np.random.default_rng(0)
    rollouts = []
    for prompt, ids in zip(PROMPTS, completion_ids(0, LENGTHS), strict=True):
        completion = Completion(ids, "", np.zeros(len(ids), np.float32), "stop", 0)
        rollouts.append(Rollout(prompts[prompt], completion, prompts[prompt]))
    with torch.no_grad():
        now = [naive(shared_policy, r)[0].numpy() for r in rollouts]
    old = [row + rng.normal(0, 0.4, len(row)).astype(np.float32) for row in now]
    ref = [row + rng.normal(0, 0.4, len(row)).astype(np.float32) for row in now]
    return rollouts, old, ref


def naive(policy, rollout):
    """Log-probabilities and entropies float32 [T] of one row, with gradient, by the model's whole forward."""
    prompt, ids = rollout.prompt, rollout.completion.ids
    full = torch.from_numpy(np.concatenate([prompt.ids, ids]))[None]
    media = {name: torch.from_numpy(value) for name, value in prompt.mm_inputs.items()}
    kinds = (full == policy.layout.image_token_id).long()
    out = policy.base(input_ids=full, attention_mask=torch.ones_like(full), mm_token_type_ids=kinds, use_cache=False, **media)
    logits = (out.logits[0, len(prompt.ids) - 1 : -1].float() / TEMPERATURE).index_fill(1, policy.banned_ids, -1e30)
    logps = logits.log_softmax(-1)
    return logps.gather(1, torch.from_numpy(ids)[:, None])[:, 0], -(logps.exp() * logps).sum(-1)


def naive_loss(policy, world, aggregation, arm=None):
    """Clipped surrogate (0.2) + BETA k3 - BONUS H, summed up by the words of the aggregation; of an arm, its rows' share of that."""
    sums = []
    for rollout, old, ref, advantage in zip(*world, ADVANTAGES, strict=True):
        if arm not in (None, rollout.arm):
            sums.append(torch.zeros(()))
            continue
        logps, entropy = naive(policy, rollout)
        ratio = (logps - torch.from_numpy(old)).exp()
        surrogate = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
        x = torch.from_numpy(ref) - logps
        sums.append((surrogate + BETA * (x.exp() - x - 1) - BONUS * entropy).sum())
    if aggregation == "token_mean":
        return sum(sums) / sum(LENGTHS)
    if aggregation == "sequence_mean":
        return sum(row / length for row, length in zip(sums, LENGTHS, strict=True)) / len(sums)
    return sum(sums) / len(sums) / (L_MAX if aggregation == "constant" else 1)


def samples_of(rollouts, aggregation, advantages=ADVANTAGES):
    weights = token_weights(LENGTHS, None, aggregation, L_MAX)
    return [
        Sample(r, np.full(len(w), a, np.float32), w) for r, a, w in zip(rollouts, advantages, weights, strict=True)
    ]  # fmt: skip


def gradient(policy):
    return torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).reshape(-1) for p in policy.parameters()])


def relative(came, expected):
    return float((came - expected).norm() / expected.norm())


@pytest.fixture(scope="module")
def expected(shared_policy, world):
    """Aggregation -> loss and gradient of the plain form."""
    out = {}
    for aggregation in ("token_mean", "sequence_mean", "sequence_sum", "constant"):
        policy = deepcopy(shared_policy)
        loss = naive_loss(policy, world, aggregation)
        loss.backward()
        out[aggregation] = (loss.item(), gradient(policy))
    return out


TERMS = (
    WeightedTerm(ClippedSurrogate(), 1.0, "surrogate"),
    WeightedTerm(KLToReference(), BETA, "kl"),
    WeightedTerm(EntropyBonus(), lambda step: BONUS, "entropy"),
)


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "sequence_sum", "constant"])
@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize("form", ["two_streams", "flat", "lines"])
def test_loss_and_gradient_equal_the_plain_form(new_policy, world, expected, aggregation, rows, form):
    """However rows are cut into parts (8, 3 or 1 of them) and forwarded."""
    rollouts, old, ref = world
    policy = new_policy()
    loss = accumulate(policy, forward_of(form, max_rows=rows), samples_of(rollouts, aggregation), Passes(old, ref), TERMS, 0, TokenMeans())
    plain_loss, plain_gradient = expected[aggregation]
    assert loss == pytest.approx(plain_loss, rel=1e-5)
    assert relative(gradient(policy), plain_gradient) < 1e-5


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
def test_the_gradient_of_each_arm_is_that_of_its_rows_alone(new_policy, world, aggregation):
    """Rows of the two arms by turns, so that prompts are shared; a third, of other ranks, has no row here. Nothing is left behind."""
    rollouts, old, ref = world
    arms = ("plain", "noisy") * 4
    rollouts = [replace(r, arm=arm) for r, arm in zip(rollouts, arms, strict=True)]
    place = {id(r): n for n, r in enumerate(rollouts)}

    def passes_of(some):
        return Passes([old[place[id(s.rollout)]] for s in some], [ref[place[id(s.rollout)]] for s in some])

    policy = new_policy()
    optimizer, random = Optimizer(policy, OptimSection()), torch.get_rng_state()

    def draws(*_):
        """As dropout does."""
        torch.rand(1)

    policy.base.model.language_model.norm.register_forward_hook(draws)
    samples = samples_of(rollouts, aggregation)
    found = arm_grad_norms(policy, forward_of(max_rows=3), samples, passes_of, TERMS, 0, optimizer, ["noisy", "other", "plain"])
    assert torch.equal(torch.get_rng_state(), random)
    assert not gradient(policy).any()
    for arm in ("noisy", "plain"):
        alone = new_policy()
        naive_loss(alone, (rollouts, old, ref), aggregation, arm).backward()
        assert found[arm] == pytest.approx(float(gradient(alone).norm()), rel=1e-5)
    assert found["other"] == 0


class Counted:
    """Stands before a policy and counts the completion tokens that it forwards."""

    def __init__(self, policy):
        self.policy, self.lengths = policy, []

    def __getattr__(self, name):
        return getattr(self.policy, name)

    def __call__(self, stream, *arguments):
        self.lengths += stream.lengths
        return self.policy(stream, *arguments)


class Forwarded(ClippedSurrogate):
    zero_without_advantage = False


def run(policy, rollouts, old, term, advantages=ADVANTAGES, rows=3):
    counted, means = Counted(policy), TokenMeans()
    terms = [WeightedTerm(term, 1.0, "term")]
    samples = samples_of(rollouts, "token_mean", advantages)
    loss = accumulate(counted, forward_of(max_rows=rows), samples, Passes(old, None), terms, 0, means)
    return loss, gradient(policy), counted.lengths, means


@pytest.mark.parametrize("term", [ClippedSurrogate(), GSPO(), ClippedISPolicy(), CappedISPolicy(), ClippedSurrogate(dual_clip=3.0)])
def test_policy_gradient_terms_are_zero_without_advantage(new_policy, world, term):
    """What lets rows be left out: forwarded all the same, they give loss 0 and gradient 0."""
    rollouts, old, _ = world
    policy = new_policy()
    loud = type("Loud", (type(term),), {"zero_without_advantage": False})(**vars(term) | {})
    loss, grad, lengths, _ = run(policy, rollouts, old, loud, advantages=(0.0,) * 8)
    assert sorted(lengths) == sorted(LENGTHS)
    assert loss == 0
    assert not grad.any()


def test_rows_of_zero_advantage_are_not_forwarded_and_change_nothing(new_policy, world):
    """Prompt 1's three rows (2, 5 and 3 tokens) have advantage 0; they still count in the denominator."""
    rollouts, old, _ = world
    loss, grad, lengths, means = run(new_policy(), rollouts, old, ClippedSurrogate())
    all_loss, all_grad, all_lengths, _ = run(new_policy(), rollouts, old, Forwarded())
    assert sorted(all_lengths) == sorted(LENGTHS)
    assert sorted(lengths) == sorted(length for length, a in zip(LENGTHS, ADVANTAGES, strict=True) if a)
    assert loss == pytest.approx(all_loss, rel=1e-6)
    assert relative(grad, all_grad) < 1e-6
    assert reduce_means([means])["forwarded"] == 5 / 8


def test_a_term_that_does_not_vanish_keeps_every_row(new_policy, world):
    rollouts, old, ref = world
    policy, means = Counted(new_policy()), TokenMeans()
    accumulate(policy, forward_of(max_rows=3), samples_of(rollouts, "token_mean"), Passes(old, ref), TERMS, 0, means)
    assert sorted(policy.lengths) == sorted(LENGTHS)


def test_a_term_of_weight_zero_is_not_computed(new_policy, world):
    """A KL whose schedule has come to 0 keeps no row and needs no reference."""
    rollouts, old, _ = world
    policy = Counted(new_policy())
    terms = [WeightedTerm(ClippedSurrogate(), 1.0, "s"), WeightedTerm(KLToReference(), lambda step: 0.0, "kl")]
    means = TokenMeans()
    accumulate(policy, forward_of(max_rows=8), samples_of(rollouts, "token_mean"), Passes(old, None), terms, 0, means)
    assert len(policy.lengths) == 5
    assert "kl" not in means.sums


def test_rows_without_weight_are_not_forwarded(new_policy, world):
    """Truncated rows under overlong filtering."""
    rollouts, old, ref = world
    policy, means = Counted(new_policy()), TokenMeans()
    samples = [Sample(s.rollout, s.advantages, np.zeros_like(s.token_weights)) for s in samples_of(rollouts, "token_mean")]
    assert accumulate(policy, forward_of(max_rows=3), samples, Passes(old, ref), TERMS, 0, means) == 0
    assert policy.lengths == []
    assert reduce_means([means]) == {"forwarded": 0.0}


def test_one_update_takes_its_own_log_probabilities_as_old(new_policy, world):
    """Ratio 1 everywhere: the loss is minus the weighted advantages, and nothing is clipped."""
    rollouts, _, _ = world
    means = TokenMeans()
    samples = samples_of(rollouts, "token_mean")
    terms = [WeightedTerm(ClippedSurrogate(), 1.0, "s")]
    loss = accumulate(new_policy(), forward_of(max_rows=3), samples, Passes(None, None), terms, 0, means)
    assert loss == pytest.approx(-sum(a * t for a, t in zip(ADVANTAGES, LENGTHS, strict=True)) / sum(LENGTHS), rel=1e-6)
    assert reduce_means([means])["clip_ratio/region_mean"] == 0


@pytest.mark.parametrize("form", ["two_streams", "flat", "lines"])
def test_logps_are_those_of_the_plain_form_in_the_callers_order(shared_policy, world, form):
    rollouts, _, _ = world
    samples = samples_of(rollouts, "token_mean")
    came = forward_of(form, max_rows=3).logps(shared_policy, [row_of(s) for s in samples])
    for row, rollout in zip(came, rollouts, strict=True):
        with torch.no_grad():
            np.testing.assert_allclose(row, naive(shared_policy, rollout)[0].numpy(), atol=2e-5)


def test_logps_are_computed_without_dropout(new_policy, world):
    """The engine samples without it; old log-probabilities must be of the distribution that was sampled."""
    rollouts, _, _ = world
    policy = new_policy().train()
    policy.base.model.language_model.norm.register_forward_hook(
        lambda module, _, out: torch.nn.functional.dropout(out, 0.5, training=module.training)
    )
    rows = [row_of(s) for s in samples_of(rollouts, "token_mean")]
    forward = forward_of(max_rows=3)
    once, again = forward.logps(policy, rows), forward.logps(policy, rows)
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))
    assert policy.training


class Contrast:
    """(logps - logps of a view)^2, the view's with or without gradient."""

    zero_without_advantage = False

    def __init__(self, need):
        self.needs = frozenset({need})

    def __call__(self, x):
        return TermOutput((x.logps - x.view_logps["other"]).square())


@pytest.mark.parametrize("need", ["view:other", "view_now:other", "view_grad:other"])
@pytest.mark.parametrize("form", ["two_streams", "flat", "lines"])
def test_views_with_and_without_gradient_equal_the_plain_form(new_policy, world, make_prompts, maze_tasks, need, form):
    """Two other mazes stand in for a rollout's own by turns, so rows of a view need not lie in the order of the rows."""
    rollouts, old, _ = world
    others = make_prompts([maze_tasks.task(maze_tasks.key(n)) for n in (7, 8)])
    viewed = [replace(r, views={"other": others[n % 2]}) for n, r in enumerate(rollouts)]
    expected, policy = new_policy(), new_policy()
    rows = [(naive(expected, r)[0], naive(expected, replace(r, prompt=r.views["other"]))[0]) for r in viewed]
    loss = sum((now - (there if "grad" in need else there.detach())).square().sum() for now, there in rows) / sum(LENGTHS)
    loss.backward()
    terms = [WeightedTerm(Contrast(need), 1.0, "contrast")]
    samples = samples_of(viewed, "token_mean")
    came = accumulate(policy, forward_of(form, max_rows=3), samples, Passes(old, None), terms, 0, TokenMeans())
    assert came == pytest.approx(loss.item(), rel=1e-5)
    assert relative(gradient(policy), gradient(expected)) < 1e-5


def test_a_view_that_the_rollouts_lack(new_policy, world):
    rollouts, old, _ = world
    terms = [WeightedTerm(Contrast("view:other"), 1.0, "contrast")]
    with pytest.raises(RecipeError, match=r"needs the view 'other', and the rollouts of task .* have none; take a rollout.strategy"):
        accumulate(new_policy(), forward_of(), samples_of(rollouts, "token_mean"), Passes(old, None), terms, 0, TokenMeans())


def test_metrics_are_token_means_over_parts_and_ranks():
    """Tokens 1 2 on one rank, 3 and a masked 100 on the other: mean 2, maximum 3."""
    ranks = [TokenMeans(), TokenMeans()]
    for means, values, mask in zip(ranks, ([[1.0, 2.0]], [[3.0, 100.0]]), ([[True, True]], [[True, False]]), strict=True):
        means.add("x", torch.tensor(values), torch.tensor(mask))
        means.maximum("top", torch.tensor(values), torch.tensor(mask))
    assert reduce_means(ranks) == {"x": 2.0, "top": 3.0, "forwarded": 0.0}


def test_log_probabilities_of_a_view_that_were_taken_before_are_not_taken_again(new_policy, world):
    """The loss is with those numbers, whatever the policy says of the view now."""
    rollouts, old, _ = world
    given = [np.full(length, -0.5 * length, np.float32) for length in LENGTHS]
    policy = Counted(new_policy())
    terms = [WeightedTerm(Contrast("view:other"), 1.0, "contrast")]
    came = accumulate(
        policy, forward_of(max_rows=3), samples_of(rollouts, "token_mean"), Passes(old, None, {"other": given}), terms, 0, TokenMeans()
    )
    with torch.no_grad():
        rows = [naive(policy.policy, rollout)[0].numpy() for rollout in rollouts]
    assert came == pytest.approx(sum(((row - there) ** 2).sum() for row, there in zip(rows, given, strict=True)) / sum(LENGTHS), rel=1e-5)
    assert sorted(policy.lengths) == sorted(LENGTHS)


@pytest.mark.parametrize("need", ["view:other", "view_now:other", "view_grad:other"])
@pytest.mark.parametrize("form", ["two_streams", "lines"])
def test_a_view_that_is_the_rows_own_prompt_is_exactly_its_own(new_policy, world, make_prompts, maze_tasks, need, form):
    """Of a task without pictures. Rows of prompt 1 have another view, so both kinds meet in one part; the others add nothing at all."""
    rollouts, old, _ = world
    (other,) = make_prompts([maze_tasks.task(maze_tasks.key(7))])
    viewed = [replace(r, views={"other": other if n in (3, 4, 5) else r.train_prompt}) for n, r in enumerate(rollouts)]
    policy, alone = Counted(new_policy()), new_policy()
    terms = [WeightedTerm(Contrast(need), 1.0, "contrast")]
    samples = samples_of(viewed, "token_mean")
    came = accumulate(policy, forward_of(form, max_rows=8), samples, Passes(old, None), terms, 0, TokenMeans())
    expected = accumulate(alone, forward_of(form, max_rows=8), samples[3:6], Passes(old[3:6], None), terms, 0, TokenMeans())
    assert came == pytest.approx(expected, rel=1e-5)
    assert relative(gradient(policy.policy), gradient(alone)) < 1e-5
    if need != "view_grad:other":
        assert sum(policy.lengths) == sum(LENGTHS) + sum(LENGTHS[3:6])
    same = [replace(r, views={"other": r.train_prompt}) for r in rollouts]
    policy = new_policy()
    assert accumulate(policy, forward_of(form), samples_of(same, "token_mean"), Passes(old, None), terms, 0, TokenMeans()) == 0
    assert not gradient(policy).any()
