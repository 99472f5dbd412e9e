"""T-GRPO: completions under shuffled frames are compared with, and nothing else."""

import numpy as np
import pytest

from data_pipelines.perturb.noise import GaussianNoise
from data_pipelines.perturb.temporal import FrameShuffle
from mmrl.advantages.grpo import GRPO
from mmrl.advantages.per_arm import PerArm
from mmrl.errors import TaskError
from mmrl.protocols import Sampling
from mmrl.strategies.plain import Plain
from mmrl.strategies.t_grpo import TGRPO
from mmrl.types import GroupRewards

SAMPLING = Sampling(max_completion_length=4, seed=3, step=2)


def test_the_shuffled_arm_has_the_same_frames_and_is_not_trained(engine, make_prompts, picture_task):
    task = picture_task("a", 6)
    (group,) = TGRPO(FrameShuffle())([task], engine, make_prompts, 4, SAMPLING)
    (own,) = Plain()([task], engine, make_prompts, 4, SAMPLING)
    assert [(r.arm, r.train_prompt is r.prompt, r.attempt) for r in group.rollouts] == [("plain", True, True)] * 4 + [
        ("shuffled", False, False)
    ] * 2  # half of them, as in the authors' code
    assert all(r.train_prompt is None for r in group.rollouts[4:])
    assert all(np.array_equal(a.completion.ids, b.completion.ids) for a, b in zip(group.rollouts[:4], own.rollouts, strict=True))
    clip, shuffled = task.media[0], group.rollouts[4].prompt.task.media[0]
    assert not np.array_equal(clip.frames, shuffled.frames)
    order = [next(n for n, frame in enumerate(clip.frames) if np.array_equal(frame, shown)) for shown in shuffled.frames]
    assert sorted(order) == list(range(6))
    np.testing.assert_array_equal(clip.timestamps_s, shuffled.timestamps_s)


@pytest.mark.parametrize(("num_generations", "given", "count"), [(8, None, 4), (3, None, 1), (1, None, 1), (2, 5, 5)])
def test_how_many_are_shuffled(engine, make_prompts, picture_task, num_generations, given, count):
    (group,) = TGRPO(FrameShuffle(), given)([picture_task("a", 4)], engine, make_prompts, num_generations, SAMPLING)
    assert sum(r.arm == "shuffled" for r in group.rollouts) == count


def test_a_task_without_frames_to_shuffle_is_refused(engine, make_prompts, picture_task):
    with pytest.raises(TaskError, match="task a: t_grpo compares orders of frames, and the task has no video of two frames or more"):
        TGRPO(FrameShuffle())([picture_task("a", (56, 84))], engine, make_prompts, 4, SAMPLING)
    mixed = picture_task("mixed", (56, 84), 4)  # a picture beside the video
    with pytest.raises(TaskError, match=r"task mixed: rollout.strategy.perturbation: frame_shuffle needs 2 or more frames"):
        TGRPO(FrameShuffle())([mixed], engine, make_prompts, 4, SAMPLING)
    assert TGRPO(GaussianNoise())([mixed], engine, make_prompts, 1, SAMPLING)


def test_shuffled_rollouts_enter_no_baseline():
    """Ordered 1 0 0 1 have advantages of their own, whatever the shuffled ones earned."""
    estimate = PerArm(GRPO(scale_rewards="batch"), arms=("plain",))
    arms = ("plain",) * 4 + ("shuffled",) * 2
    seen = []
    for shuffled in ((0, 0), (100, -7), (np.nan, 3)):
        group = GroupRewards(np.array([1, 0, 0, 1, *shuffled], np.float32), np.ones(6, np.int64), arms=arms)
        (rows,) = estimate([group])
        seen.append([float(row[0]) for row in rows])
    alone = GRPO(scale_rewards="batch")([GroupRewards(np.array([1, 0, 0, 1], np.float32), np.ones(4, np.int64))])
    assert seen[0] == seen[1] == seen[2] == [*(float(row[0]) for row in alone[0]), 0.0, 0.0]


def test_no_shuffled_completions_is_refused():
    with pytest.raises(ValueError, match="shuffled_generations must be 1 or more, or null; got 0"):
        TGRPO(FrameShuffle(), 0)
