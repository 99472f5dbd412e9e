"""ViSurf: the label as one more row, and the controls that keep it from doing harm. Numbers: ddof 1, epsilon 1e-6."""

from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
import torch

from mmrl.advantages.grpo import GRPO
from mmrl.advantages.reinforce_pp import ReinforcePP
from mmrl.advantages.visurf import ViSurf as Estimator
from mmrl.aggregate import token_weights
from mmrl.batch import LossInputs
from mmrl.errors import TaskError
from mmrl.loop.score import WeightedReward, score
from mmrl.loop.update import Passes, TokenMeans, WeightedTerm, accumulate, reduce_means
from mmrl.losses.clipped_surrogate import ClippedSurrogate
from mmrl.losses.correction import MaskedImportance, TruncatedImportance
from mmrl.losses.label_floor import LabelFloor
from mmrl.models.forward import GroupForward
from mmrl.protocols import Sampling
from mmrl.strategies.plain import Plain
from mmrl.strategies.visurf import ViSurf
from mmrl.types import Group, GroupRewards, Sample
from rewards.exact import ExactMatch
from rewards.format import ThinkFormat

SAMPLING = Sampling(max_completion_length=8, seed=3, step=2)
NAN = float("nan")


def estimated(rollouts, label, estimator=None, **options):
    """Advantages of the rollouts and, last, of the label."""
    arms = ("plain",) * len(rollouts) + ("label",)
    group = GroupRewards(np.array([*rollouts, label], np.float32), np.ones(len(arms), np.int64), arms=arms, **options)
    (rows,) = (estimator or Estimator())([group])
    return [float(row[0]) for row in rows]


# --- the numbers ------------------------------------------------------------------------------------------------------------------------


def test_label_above_all_rollouts():
    assert estimated([0, 0, 1, 1], 3) == pytest.approx([-0.816496, -0.816496, 0, 0, 1.632993], abs=1e-5)


@pytest.mark.parametrize("G", [4, 8])
@pytest.mark.parametrize("gap", [0.001, 1, 100])
def test_label_above_equal_rollouts_does_not_depend_on_how_far(G, gap):
    """A_y = G / sqrt(G + 1), A_o = -1 / sqrt(G + 1): 1.788854 and -0.447214 for 4, 2.666667 and -0.333333 for 8."""
    exact = Estimator(GRPO(epsilon=1e-12))
    assert estimated([0.5] * G, 0.5 + gap, exact) == pytest.approx([-1 / sqrt(G + 1)] * G + [G / sqrt(G + 1)], abs=1e-5)


def test_smoothing_switches_the_label_off():
    """r(y) = 3 is reached by a rollout, so it becomes the mean, 1.5."""
    assert estimated([0, 1, 3, 2], 3) == pytest.approx([-1.341641, -0.447214, 1.341641, 0.447214, 0], abs=1e-5)
    assert estimated([0, 1, 3, 2], 3)[-1] == 0.0
    without = estimated([0, 1, 3, 2], 3, Estimator(smooth_on=None))
    assert without == pytest.approx([-1.380537, -0.613572, 0.920358, 0.153393, 0.920358], abs=1e-5)


def test_smoothed_advantages_are_plain_ones_times_a_factor():
    """sqrt(G / (G - 1)) = 1.154701 for G = 4."""
    (plain,) = GRPO(epsilon=1e-6)([GroupRewards(np.array([0, 1, 3, 2], np.float32), np.ones(4, np.int64))])
    assert float(plain[0][0]) == pytest.approx(-1.161895, abs=1e-5)
    assert estimated([0, 1, 3, 2], 3)[:4] == pytest.approx([1.154701 * float(row[0]) for row in plain], abs=1e-5)


def test_all_as_good_as_the_label_is_exactly_zero():
    assert estimated([3, 3, 3, 3], 3) == [0.0] * 5
    assert estimated([0.1, 0.1, 0.1], 0.1) == [0.0] * 4


def test_advantages_sum_to_zero():
    rng = np.random.default_rng(0)
    for _ in range(50):
        rewards = rng.choice([0, 0.5, 1, 2, 3.25], 9)
        assert sum(estimated(rewards[:8], rewards[8])) == pytest.approx(0, abs=1e-5)


def test_a_smoothed_label_is_off_under_any_baseline():
    assert estimated([0, 1, 1, 0], 1, Estimator(ReinforcePP()))[-1] == 0.0
    assert estimated([0, 0, 0, 0], 1, Estimator(ReinforcePP()))[-1] > 0


def test_smoothing_by_accuracy_compares_one_reward():
    """A rollout in good form, worth 6 of 7, reaches the label, which forfeits the point for thinking: by reward that smooths, by accuracy
    (2 of 3 against 3) it does not."""
    parts = {"accuracy": np.array([0, 2, 1, 0, 3], np.float32)}
    by_accuracy = Estimator(smooth_on="accuracy", accuracy="accuracy")
    assert estimated([3, 6, 4, 2], 6, parts=parts)[-1] == 0.0
    assert estimated([3, 6, 4, 2], 6, by_accuracy, parts=parts)[-1] > 0
    right = {"accuracy": np.array([0, 3, 1, 0, 3], np.float32)}
    assert estimated([3, 5, 4, 2], 6, by_accuracy, parts=right)[-1] == 0.0


def test_the_share_of_labels_switched_off_is_told():
    """Of four labels those of the second and the last: one that fails, and one above all rollouts, stay as they are."""

    def group(*rewards):
        return GroupRewards(np.float32(rewards), np.ones(3, np.int64), arms=("plain", "plain", "label"))

    groups = [group(0, 1, 2), group(0, 2, 2), group(0, 1, NAN), group(3, 1, 2)]
    assert Estimator().metrics(groups) == {"visurf/smoothed": 0.5}
    assert Estimator(smooth_on=None).metrics(groups) == {"visurf/smoothed": 0.0}


def test_failed_rewards_are_left_out():
    """The best rollout failed: nothing reaches the label."""
    assert estimated([0, 1, NAN], 2) == pytest.approx([*estimated([0, 1], 2)[:2], 0, estimated([0, 1], 2)[2]])
    assert estimated([0, 1], NAN) == pytest.approx([-0.707106, 0.707106, 0], abs=1e-5)
    assert estimated([NAN, NAN], 1) == [0.0] * 3


def test_token_rewards_are_not_counted_twice():
    """A KL in the reward makes totals 0, 1, 3, 2 and 3 of rewards 1, 1, 3, 2 and 3.5."""
    token_rewards = tuple(np.array([x], np.float32) for x in (-1, 0, 0, 0, -0.5))
    given = estimated([1, 1, 3, 2], 3.5, token_rewards=token_rewards)
    assert given == pytest.approx([-1.341641, -0.447214, 1.341641, 0.447214, 0], abs=1e-5)


def test_settings_that_contradict_each_other_are_refused():
    for options in ({"smooth_on": "accuracy"}, {"accuracy": "accuracy"}, {"smooth_on": None, "accuracy": "accuracy"}):
        with pytest.raises(ValueError, match="accuracy names the reward of smooth_on: accuracy"):
            Estimator(**options)
    with pytest.raises(ValueError, match="visurf needs a row of the arm 'label' in every group"):
        Estimator()([GroupRewards(np.zeros(2, np.float32), np.ones(2, np.int64), arms=("plain", "plain"))])


# --- the row ----------------------------------------------------------------------------------------------------------------------------


def test_the_label_is_one_more_row_of_the_same_prompt(engine, make_prompts, picture_task):
    tasks = [picture_task("a", (56, 84)), picture_task("b", (56, 56))]
    groups = ViSurf("<answer>{solution}</answer>")(tasks, engine, make_prompts, 3, SAMPLING)
    for group, own in zip(groups, Plain()(tasks, engine, make_prompts, 3, SAMPLING), strict=True):
        *rollouts, label = group.rollouts
        assert all(np.array_equal(a.completion.ids, b.completion.ids) for a, b in zip(rollouts, own.rollouts, strict=True))
        assert (label.arm, label.attempt, label.completion.sampled, label.completion.finish) == ("label", False, False, "stop")
        assert label.prompt is label.train_prompt is rollouts[0].prompt
        assert label.completion.text == "<answer><|up|></answer>"
        assert label.completion.policy_version == 4
        assert np.isnan(label.completion.sampling_logps).all()


@pytest.mark.parametrize("text", ["<|up|><|left|>", '{"box": [1, 2], "label": "red square"}', "<answer>3.5</answer>", " Über\n2"])
def test_the_label_is_tokenized_as_an_assistants_message_is(make_prompts, processor, picture_task, text):
    """Ids of the chat template's own assistant message, up to and with its end token."""
    task = picture_task("words")
    messages = [*task.messages, {"role": "assistant", "content": text}]
    whole = processor.tokenizer(processor.apply_chat_template(messages, tokenize=False), add_special_tokens=False)["input_ids"]
    (prompt,) = make_prompts([task])
    label = make_prompts.written(text)
    assert whole[: len(prompt.ids)] == prompt.ids.tolist()
    assert whole[len(prompt.ids) :][: len(label.ids)] == label.ids.tolist()
    assert label.ids[-1] == processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert label.text == text


def test_what_cannot_be_a_label_is_refused(engine, make_prompts, picture_task):
    task = picture_task("a", (56, 84))
    for template, message in (("{answer}", "template must hold {solution}"), ("<think></think>{solution}", "template holds a thought")):
        with pytest.raises(ValueError, match=message):
            ViSurf(template)
    for solution, message in (
        ("", "task a: visurf trains on solutions, and the task has none"),
        ("<think>up</think><|up|>", r"task a: the solution holds a thought"),
        ("<|up|>" * 8, "task a: its label has 9 tokens, and a completion at most 8; raise rollout.max_completion_length"),
    ):
        with pytest.raises(TaskError, match=message):
            ViSurf()([replace(task, solution=solution)], engine, make_prompts, 2, SAMPLING)
    ViSurf().check(task, 2)
    with pytest.raises(TaskError, match="has none"):
        ViSurf().check(replace(task, solution=" "), 2)


def test_the_label_earns_nothing_for_thinking(engine, make_prompts, picture_task):
    """The reward for the form of thoughts is the rollouts' alone, so the label has the accuracy and no more."""
    groups = ViSurf("<answer>{solution}</answer>")([picture_task("a", (56, 84))], engine, make_prompts, 2, SAMPLING)
    thought = replace(groups[0].rollouts[-1].completion, text="<think></think><answer><|up|></answer>")
    group = replace(groups[0], rollouts=(*groups[0].rollouts[:-1], replace(groups[0].rollouts[-1], completion=thought)))
    rewards = [WeightedReward(ExactMatch(), 3.0, "accuracy"), WeightedReward(ThinkFormat(), 1.0, "thinking", arms=("plain",))]
    (scored,) = score([group], rewards)
    assert scored.rewards.tolist() == [0.0, 0.0, 3.0]
    assert np.isnan(scored.parts["thinking"][-1])


# --- the update -------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def rows(engine, make_prompts, picture_task):
    """A group of three rollouts and the label."""
    (group,) = ViSurf("<answer>{solution}</answer>")([picture_task("a", (56, 84))], engine, make_prompts, 3, SAMPLING)
    return group.rollouts


def samples(rows, advantages):
    weights = token_weights([len(r.completion.ids) for r in rows], None, "sequence_mean")
    return [Sample(r, np.full(len(w), a, np.float32), w) for r, a, w in zip(rows, advantages, weights, strict=True)]


def updated(policy, given, correction=None, old=None):
    """Loss and metrics of one update; gradients are left in the policy."""
    means = TokenMeans()
    term = WeightedTerm(ClippedSurrogate(correction=correction), 1.0, "clip")
    policy.zero_grad()
    loss = accumulate(policy, GroupForward(1.0, 0), given, Passes(old, None), [term], 0, means)
    return loss, reduce_means([means])


def gradient(policy):
    return torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).reshape(-1).clone() for p in policy.parameters()])


def test_first_update_pulls_the_label_up(rows, new_policy, naive_logps):
    """rho(y) = 1, and the gradient of its row is -A_y / (G + 1) times that of its mean log-probability."""
    policy, advantage = new_policy().train(), 1.788854
    loss, _ = updated(policy, samples(rows, [0, 0, 0, advantage]))
    found = gradient(policy)
    assert loss == pytest.approx(-advantage / 4, abs=1e-3 * advantage)
    policy.zero_grad()
    mean = naive_logps(policy, rows[-1].prompt, rows[-1].completion.ids, 1.0).mean()
    (-advantage / 4 * mean).backward()
    expected = gradient(policy)
    assert float((found - expected).norm() / expected.norm()) < 1e-4


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("kind", [TruncatedImportance, MaskedImportance])
def test_importance_corrections_leave_the_label_alone(rows, new_policy, kind, level):
    """Its sampling_logps are NaN, its weights 1: the update of the label alone is the same bit for bit with and without a correction."""
    policy, label = new_policy().train(), samples(rows, [0, 0, 0, 1.5])
    loss, _ = updated(policy, label)
    plain = gradient(policy)
    corrected_loss, metrics = updated(policy, label, kind(level=level))
    assert corrected_loss == loss
    assert torch.equal(gradient(policy), plain)
    assert metrics["sampling/importance_sampling_ratio/mean"] == 1.0
    old = [np.full(len(r.completion.ids), -1.0, np.float32) for r in rows]  # as later updates of a step have it
    assert updated(policy, label, kind(level=level), old)[0] == updated(policy, label, None, old)[0]


def test_metrics_of_the_label_stand_apart(rows, new_policy):
    """The gap between engine and trainer is over what the engine sampled; the clip of the label's row is logged by itself."""
    policy = new_policy().train()
    now = GroupForward(1.0, 0).logps(policy, [(r.prompt, r.completion.ids) for r in rows])
    old = [*now[:3], now[3] - 1.0]  # the label's ratio is e, above 1.2
    _, metrics = updated(policy, samples(rows, [1, -1, 1, 1]), None, old)
    assert metrics["arm/label/clip_ratio/region_mean"] == 1.0
    assert metrics["arm/plain/clip_ratio/region_mean"] == 0.0
    lengths = [len(r.completion.ids) for r in rows]
    assert metrics["clip_ratio/region_mean"] == pytest.approx(lengths[3] / sum(lengths))
    assert metrics["arm/label/logps"] == pytest.approx(float(now[3].mean()), abs=1e-4)
    assert metrics["sampling/sampling_logp_difference/max"] < 1e-4
    assert "arm/label/sampling/sampling_logp_difference/mean" not in metrics


def test_a_label_below_the_floor_is_refused_and_still_counts_as_a_row(rows, new_policy):
    policy, given = new_policy().train(), samples(rows, [1, -1, 0.5, 2])
    (label_logps,) = GroupForward(1.0, 0).logps(policy, [(rows[-1].prompt, rows[-1].completion.ids)])
    mean = float(label_logps.mean())
    loss, _ = updated(policy, given)
    whole = gradient(policy)
    kept, _ = updated(policy, given, LabelFloor(mean - 0.01))
    assert kept == loss
    assert torch.equal(gradient(policy), whole)
    refused, metrics = updated(policy, given, LabelFloor(mean + 0.01))
    without = gradient(policy)
    assert refused == pytest.approx(loss + 2 / 4, abs=1e-5)  # the label's share is gone, the others' are as they were
    updated(policy, samples(rows, [1, -1, 0.5, 0]))
    torch.testing.assert_close(without, gradient(policy), atol=1e-7, rtol=1e-4)
    assert metrics["arm/label/sampling/importance_sampling_ratio/masked"] == 1.0


def test_the_floor_looks_at_given_rows_and_their_own_tokens_only():
    """Row 0 was sampled; rows 1 and 2 were given, with means -3 and -1 over the tokens that count."""
    old = torch.tensor([[-9.0, -9.0], [-1.0, -5.0], [-1.0, -99.0]])
    x = LossInputs(
        logps=old, old_logps=old, advantages=torch.ones(3, 2), mask=torch.tensor([[True, True], [True, True], [True, False]]),
        sampling_logps=old - 1, given=torch.tensor([False, True, True]),
    )  # fmt: skip
    assert LabelFloor(-2.0)(x).tolist() == [[1, 1], [0, 0], [1, 1]]
    weights = LabelFloor(-2.0, TruncatedImportance(cap=2.0))(x)
    assert weights.tolist() == [[2, 2], [0, 0], [2, 1]]
    with pytest.raises(ValueError, match="floor must be finite and below 0"):
        LabelFloor(0.0)


def test_groups_of_another_strategy_get_a_label_too(engine, make_prompts, picture_task):
    class Twice:
        def __call__(self, tasks, engine, make_prompts, num_generations, sampling):
            groups = Plain()(tasks, engine, make_prompts, num_generations, sampling)
            return [Group(group.task, group.rollouts * 2) for group in groups]

    (group,) = ViSurf(of=Twice())([picture_task("a", (56, 84))], engine, make_prompts, 2, SAMPLING)
    assert [r.arm for r in group.rollouts] == ["plain"] * 4 + ["label"]
