import numpy as np

from mmrl.engines.hf import HFEngine
from mmrl.protocols import Sampling
from mmrl.strategies.plain import Plain


def test_a_group_is_a_tasks_completions_under_its_own_prompt(processor, shared_policy, make_prompts, picture_task):
    tasks = [picture_task("a", (56, 84)), picture_task("b")]
    engine = HFEngine()
    engine.attach(processor)
    engine.load_policy(shared_policy, 4)
    sampling = Sampling(max_completion_length=3)
    groups = Plain()(tasks, engine, make_prompts, 3, sampling)
    expected = engine.generate(make_prompts(tasks), 3, sampling)
    assert [group.task for group in groups] == tasks
    for task, group, completions in zip(tasks, groups, expected, strict=True):
        assert len(group.rollouts) == 3
        assert len({id(r.prompt) for r in group.rollouts}) == 1  # one object, so that the update packs the group
        for rollout, completion in zip(group.rollouts, completions, strict=True):
            assert rollout.prompt.task is task
            assert rollout.train_prompt is rollout.prompt
            assert rollout.arm == "plain"
            np.testing.assert_array_equal(rollout.completion.ids, completion.ids)


def test_no_tasks(make_prompts, processor, shared_policy):
    engine = HFEngine()
    engine.attach(processor)
    engine.load_policy(shared_policy, 0)
    assert Plain()([], engine, make_prompts, 3, Sampling()) == []
