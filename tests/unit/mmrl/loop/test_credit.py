"""Groups to samples: which rows are trained, in which update, with which share of the loss."""

import numpy as np
import pytest

from mmrl.advantages.grpo import GRPO
from mmrl.errors import RewardError
from mmrl.loop import credit as module
from mmrl.loop.credit import credit, together
from mmrl.types import Completion, Group, Prompt, Rollout, ScoredGroup, Task

NAN = float("nan")


def scored_group(name, rewards, lengths=None, finish=None, trained=None):
    task = Task(name, (), (), "", {})
    prompt = Prompt(task, "", np.array([0]), {})
    G = len(rewards)
    rollouts = tuple(
        Rollout(prompt, Completion(np.arange(t), "", np.zeros(t, np.float32), end, 0), prompt if used else None)
        for t, end, used in zip(lengths or [2] * G, finish or ["stop"] * G, trained or [True] * G, strict=True)
    )
    return ScoredGroup(Group(task, rollouts), np.array(rewards, np.float32), {})


def credited(groups, places=None, **options):
    options = {"aggregation": "token_mean", "max_completion_length": 8, "mask_truncated": False, "num_mini_batches": 1, "rank": 0} | options
    updates, _ = credit(groups, range(len(groups)) if places is None else places, GRPO(scale_rewards="none"), **options)
    return updates


def names(update):
    return [sample.rollout.prompt.task.id for sample in update]


def total(update):
    return sum(float(sample.token_weights.sum()) for sample in update)


def test_advantages_and_weights_by_hand():
    """Rewards 1 and 0: advantages +-0.5. 3 + 1 tokens: each weighs 1/4."""
    (update,) = credited([scored_group("a", [1.0, 0.0], lengths=[3, 1])])
    assert [s.advantages.tolist() for s in update] == [[0.5, 0.5, 0.5], [-0.5]]
    assert [s.token_weights.tolist() for s in update] == [[0.25, 0.25, 0.25], [0.25]]


def test_rows_of_zero_advantage_stay_in_the_denominator():
    """A dead group of two rows with 2 tokens each: 4 of 8 tokens."""
    (update,) = credited([scored_group("dead", [1.0, 1.0]), scored_group("live", [1.0, 0.0])])
    assert [float(s.token_weights[0]) for s in update] == [0.125] * 4


def test_a_failed_reward_and_an_untrained_rollout_become_no_sample():
    """Reward 3 failed: baseline (1 + 0) / 2. The rollout that is only compared with is in the baseline, not in the loss."""
    (update,) = credited([scored_group("a", [1.0, 0.0, NAN], trained=[True, False, True])])
    assert [(s.advantages.tolist(), s.token_weights.tolist()) for s in update] == [([0.5, 0.5], [0.5, 0.5])]


def test_truncated_completions_keep_their_reward_in_the_baseline_but_leave_the_loss():
    """Overlong filtering: 2 + 4 tokens, the 4 cut off: the others weigh 1/2, and the baseline is still 0.5."""
    (update,) = credited([scored_group("a", [1.0, 0.0], lengths=[2, 4], finish=["stop", "length"])], mask_truncated=True)
    assert [s.token_weights.tolist() for s in update] == [[0.5, 0.5], [0.0] * 4]
    assert update[0].advantages.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(("num_mini_batches", "dealt"), [(1, ["abcd"]), (2, ["ab", "cd"]), (4, ["a", "b", "c", "d"])])
def test_groups_are_dealt_whole_in_blocks_and_each_update_has_its_own_weights(num_mini_batches, dealt):
    groups = [scored_group(name, [1.0, 0.0], lengths=[n + 1, n + 1]) for n, name in enumerate("abcd")]
    updates = credited(groups, num_mini_batches=num_mini_batches)
    assert ["".join(sorted(set(names(update)))) for update in updates] == dealt
    assert [total(update) for update in updates] == pytest.approx([1.0] * num_mini_batches)


@pytest.mark.parametrize("num_mini_batches", [1, 2])
def test_ranks_together_have_the_samples_of_one_process(monkeypatch, num_mini_batches):
    """Groups 0 2 on one rank, 1 3 on the other: same update, advantages and weights for every row."""
    groups = [scored_group(name, rewards, lengths) for name, rewards, lengths in
              (("a", [1, 0], [1, 2]), ("b", [0, 0], [3, 1]), ("c", [1, 1], [2, 2]), ("d", [0, 2], [5, 1]))]  # fmt: skip

    def rows(updates):
        return [sorted((s.rollout.prompt.task.id, tuple(s.advantages), tuple(s.token_weights)) for s in update) for update in updates]

    alone = rows(credited(groups, num_mini_batches=num_mini_batches))
    sent: list = []
    monkeypatch.setattr(module, "gather_from_ranks", lambda items: (sent.append(list(items)), [list(items)])[1])
    for rank in (0, 1):
        credited(groups[rank::2], [rank, rank + 2], rank=rank, num_mini_batches=1)
    monkeypatch.setattr(module, "gather_from_ranks", lambda items: sent)
    ranks = [credited(groups[rank::2], [rank, rank + 2], rank=rank, num_mini_batches=num_mini_batches) for rank in (0, 1)]
    assert rows([a + b for a, b in zip(*ranks, strict=True)]) == alone


def test_what_an_estimator_tells_is_of_all_ranks_groups(monkeypatch):
    """Here: how many groups there are and their mean reward, (1 + 0 + 2 + 2) / 4."""

    class Tells(GRPO):
        def metrics(self, groups):
            return {"groups": float(len(groups)), "mean": float(np.mean([g.rewards for g in groups]))}

    options = {"aggregation": "token_mean", "max_completion_length": 8, "mask_truncated": False, "num_mini_batches": 1}
    a, b = scored_group("a", [1.0, 0.0]), scored_group("b", [2.0, 2.0])
    alone = credit([a, b], [0, 1], Tells(), rank=0, **options)[1]
    sent: list = []
    monkeypatch.setattr(module, "gather_from_ranks", lambda items: (sent.append(list(items)), [list(items)])[1])
    for rank, group in enumerate((a, b)):
        credit([group], [rank], GRPO(), rank=rank, **options)
    monkeypatch.setattr(module, "gather_from_ranks", lambda items: sent)
    ranks = [credit([group], [rank], Tells(), rank=rank, **options)[1] for rank, group in enumerate((a, b))]
    assert alone == ranks[0] == ranks[1] == {"groups": 2.0, "mean": 1.25}
    assert credit([a], [0], GRPO(), rank=0, **options)[1] == {}


def test_together_passes_results_and_errors_of_a_single_process_through():
    assert together(lambda a, b: a + b, 1, 2) == 3
    with pytest.raises(ZeroDivisionError):
        together(lambda: 1 / 0)


@pytest.mark.parametrize(
    ("told", "kind"), [((RewardError, "RewardError('no')", "no"), RewardError), ((RuntimeError, "KeyError('x')", "'x'"), RuntimeError)]
)
def test_an_error_of_another_rank_is_raised_here(monkeypatch, told, kind):
    monkeypatch.setattr(module.torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(module, "gather_from_ranks", lambda items: [list(items), [told]])
    with pytest.raises(kind, match=r"process 1: (no|KeyError\('x'\))"):
        together(lambda: 5)


def test_ones_own_error_is_raised_itself(monkeypatch):
    monkeypatch.setattr(module.torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(module, "gather_from_ranks", lambda items: [[None], list(items)])
    with pytest.raises(ZeroDivisionError):
        together(lambda: 1 / 0)
