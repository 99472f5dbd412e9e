"""Which passes a step makes before its update, and which of their numbers each sample's loss is given."""

import numpy as np
import pytest

from mmrl.loop.passes import Asked, Known, policy_signals, reference_logps
from mmrl.loop.update import WeightedTerm
from mmrl.models.forward import GroupForward
from mmrl.types import Completion, Group, Rollout, Sample, ScoredGroup


class Part:
    """A loss term or shaper, as far as what it needs goes."""

    def __init__(self, *needs):
        self.needs = frozenset(needs)


def asked(*, term=(), shaper=None, **others):
    shapers = [] if shaper is None else [Part(*shaper)]
    others = {"several": False, "kl_in_reward": False, "logs": False} | others
    return Asked([WeightedTerm(Part(*term), 1.0, "term")], shapers, ("masked", "noisy"), **others)


@pytest.mark.parametrize(
    ("given", "views", "cached"),
    [
        ({}, [], []),
        ({"term": ["view:noisy"]}, ["noisy"], []),  # the one update takes it itself
        ({"term": ["view:noisy"], "several": True}, ["noisy"], ["noisy"]),
        ({"term": ["view_now:noisy", "view_grad:masked"], "several": True}, ["masked", "noisy"], []),
        ({"shaper": ["view:masked", "view_kl:noisy"]}, ["masked", "noisy"], ["masked"]),
        ({"term": ["view:noisy"], "logs": True}, ["masked", "noisy"], []),  # the first view is logged
    ],
)
def test_views_that_rollouts_must_have_and_those_taken_before_the_update(given, views, cached):
    assert (asked(**given).views, asked(**given).cached) == (views, cached)


@pytest.fixture
def scored(make_prompts, maze_tasks, completion_ids):
    """Two groups of three rollouts; the last of each is only compared with."""
    groups = []
    for n, prompt in enumerate(make_prompts([maze_tasks.task(maze_tasks.key(n)) for n in range(2)])):
        completions = [Completion(ids, "", np.zeros(len(ids), np.float32), "stop", 0) for ids in completion_ids(n, [3, 1, 2])]
        trained = (prompt, prompt, None)
        rollouts = tuple(Rollout(prompt, c, train, views={"masked": prompt}) for c, train in zip(completions, trained, strict=True))
        groups.append(ScoredGroup(Group(prompt.task, rollouts), np.zeros(3, np.float32), {}))
    return groups


@pytest.mark.parametrize("given", [{"several": True}, {"shaper": ["old_logps"]}, {"kl_in_reward": True}, {"logs": True}])
def test_the_policy_is_asked_of_rollouts_that_are_trained(shared_policy, scored, given):
    found = policy_signals(asked(**given), scored, shared_policy, GroupForward(1.0, 0))
    trained = [r for group in scored for r in group.group.rollouts[:2]]
    assert list(found) == [id(r) for r in trained]
    expected = GroupForward(1.0, 0).logps(shared_policy, [(r.prompt, r.completion.ids) for r in trained])
    for rollout, logps in zip(trained, expected, strict=True):
        np.testing.assert_allclose(found[id(rollout)]["old_logps"], logps, atol=1e-6)
        assert ("view:masked" in found[id(rollout)]) == ("logs" in given)


@pytest.mark.parametrize("given", [{"term": ["ref_logps"]}, {"kl_in_reward": True}])
def test_the_reference_is_another_model(shared_policy, new_policy, scored, given):
    other = new_policy(1).eval()
    found = reference_logps(asked(**given), scored, shared_policy, other, GroupForward(1.0, 0))
    trained = [r for group in scored for r in group.group.rollouts[:2]]
    expected = GroupForward(1.0, 0).logps(other, [(r.prompt, r.completion.ids) for r in trained])
    assert all(np.array_equal(found[id(r)], logps) for r, logps in zip(trained, expected, strict=True))


def test_where_nobody_asks_nothing_is_forwarded(scored):
    """Nothing to forward with is given."""
    assert policy_signals(asked(term=["ref_logps"]), scored, None, None) == {}  # type: ignore[arg-type]
    assert reference_logps(asked(several=True, logs=True), scored, None, None, None) == {}  # type: ignore[arg-type]


def test_each_sample_is_given_its_own(scored):
    rollouts = [r for group in scored for r in group.group.rollouts[:2]]
    signals = {id(r): {"old_logps": np.float32([n]), "view:noisy": np.float32([-n])} for n, r in enumerate(rollouts)}
    ref = {id(r): np.float32([n + 0.5]) for n, r in enumerate(rollouts)}
    samples = [Sample(rollouts[n], np.zeros(1, np.float32), np.ones(1, np.float32)) for n in (2, 0)]
    passes = Known(asked(term=["view:noisy"], several=True), signals, ref).of(samples)
    assert (np.concatenate(passes.old_logps).tolist(), np.concatenate(passes.ref_logps).tolist()) == ([2, 0], [2.5, 0.5])
    assert np.concatenate(passes.view_logps["noisy"]).tolist() == [-2, 0]
    once = Known(asked(term=["view:noisy"]), signals, {}).of(samples)
    assert (once.old_logps, once.ref_logps, once.view_logps) == (None, None, {})
