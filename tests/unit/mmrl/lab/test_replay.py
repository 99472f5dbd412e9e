"""Replays of logged rollouts: the same rewards give the same bits, other rewards are compared by numbers worked by hand."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from mmrl.advantages.grpo import GRPO
from mmrl.errors import MediaError, MmrlError, RecipeError, RewardError
from mmrl.lab.logged import read_logged_run
from mmrl.lab.replay import compare, open_log, replay, replay_command
from mmrl.lab.spec import read_rewards
from mmrl.loop.score import score
from mmrl.recipe import load_recipe
from mmrl.types import Group, Media, Task
from tests.unit.mmrl.lab.conftest import ROOT, log_groups, rollout, write_recipe

NAN = float("nan")
TRL_FUNCTIONS = '''
def numbered(prompts, completions, completion_ids, solution, **columns):
    """Of everything that a TRL function is given: message texts, ids, solution and a meta column."""
    words = [prompt[-1]["content"][-1]["text"] for prompt in prompts]
    return [len(w) + sum(ids) / 100 + len(s) + m for w, ids, s, m in zip(words, completion_ids, solution, columns["moves"])]
'''


def call(run, *rewards, **options):
    defaults = {"advantage": None, "steps": None, "with_probes": False, "out": None, "num_generations": None, "logged": ()}
    return replay_command(run, rewards, **(defaults | options))


def result(run, *rewards, **options):
    """table.json of a replay."""
    out = run.parent / "replayed"
    call(run, *rewards, out=out, **options)
    return json.loads((out / "table.json").read_text())


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("advantage.scale_rewards=batch",),
        ("advantage={use: reinforce_pp}",),
        ("rewards=[{use: overlong, max_completion_length: 8, cache: 4}, {use: repetition, weight: 0.3}, {use: maze_walker}]",),
        ("rewards=[{use: shuffled, reward: {use: maze_prefix}, seed: 3}]", "advantage={use: rloo}"),
        ("rewards=[{use: trl, function: 'numbering:numbered'}]",),
    ],
    ids=["demo", "batch", "per token", "lengths", "shuffled", "trl function"],
)
def test_the_runs_own_rewards_come_out_bit_for_bit(logged_run, tmp_path, monkeypatch, overrides):
    (tmp_path / "numbering.py").write_text(TRL_FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    run, scored = logged_run(*overrides)
    log = open_log(run)
    assert log.own is not None
    again = [item for step in log.steps for item in score([g.group for g in step.groups], log.own.weighted())]
    assert len(again) == len(scored) == 8
    for one, other in zip(again, scored, strict=True):
        assert one.rewards.tobytes() == other.rewards.tobytes()
        assert {name: part.tobytes() for name, part in one.parts.items()} == {name: part.tobytes() for name, part in other.parts.items()}
    made = replay(log, {"same": log.own.weighted()}, log.own.advantage.build(), None)
    assert (made["candidates"]["same"]["same"], made["reproduced"]) == (1.0, 0.0)


def test_what_is_read_is_what_was_logged(logged_run):
    run, scored = logged_run()
    (first, second) = read_logged_run(run)
    assert (first.step, second.step, len(first.groups)) == (10, 20, 4)
    for logged, item in zip((*first.groups, *second.groups), scored, strict=True):
        assert logged.rewards.tobytes() == item.rewards.tobytes()
        task, truth = logged.group.task, item.group.task
        assert (task.id, task.solution, task.messages) == (truth.id, truth.solution, truth.messages)
        assert task.meta == truth.meta
        assert np.array_equal(task.media[0].frames, truth.media[0].frames)
        for one, other in zip(logged.group.rollouts, item.group.rollouts, strict=True):
            assert one.completion.ids.tolist() == other.completion.ids.tolist()
            assert one.completion.sampling_logps.tolist() == other.completion.sampling_logps.tolist()
            assert (one.completion.text, one.completion.policy_version, one.prompt.text) == (other.completion.text, 7, "templated")


def grounding_task(fps: float, size: int = 28) -> Task:
    frames = np.random.default_rng(0).integers(0, 256, (8, size, size, 3), np.uint8)
    messages = ({"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "When?"}, {"type": "image"}]},)
    media = (Media(frames, np.arange(8) / fps), Media(frames[:1]))
    return Task("g/1", messages, media, "1.2 - 2.9", {"kind": "grounding", "span_s": [1.2, 2.9], "duration_s": 4.0})


def test_times_of_a_clip_are_kept_and_an_arm_may_show_another(tmp_path, monkeypatch):
    """Snapped to the stamps 0, 1, 2, 3 s the span 1.2-2.9 is 1-3; an arm was shown the clip at twice the speed, with stamps 0, .5, 1, 1.5.
    Rewards look at the task's own clip. Both orders: an arm first, and nothing but arms."""
    monkeypatch.chdir(ROOT)
    recipe = load_recipe("configs/methods/demo.yaml", ["rewards=[{use: temporal_iou, snap: true}]"])
    for name, arms in (("mixed", (True, False)), ("arms", (True, True))):
        run = tmp_path / name
        write_recipe(run, recipe)
        task = grounding_task(2.0)
        fast = replace(task, media=(Media(task.media[0].frames, np.arange(8) / 4.0), task.media[1]))
        texts = ("1 - 3", "1 - 2")
        group = Group(task, tuple(rollout(task, text, shown=fast if other else None) for text, other in zip(texts, arms, strict=True)))
        (scored,) = log_groups(run, recipe, 1, [group])
        assert scored.rewards.tolist() == [1.0, 0.5]
        (step,) = read_logged_run(run)
        (logged,) = step.groups
        assert logged.group.task.media[0].timestamps_s is not None
        assert logged.group.task.media[0].timestamps_s.tolist() == (np.arange(8) / 2.0).tolist()
        seen = [r.prompt.task.media[0].timestamps_s for r in logged.group.rollouts]
        assert [stamps[-1] for stamps in seen if stamps is not None] == [1.75 if other else 3.5 for other in arms]
        assert [item.is_video for item in logged.group.task.media] == [True, False]
        (again,) = score([logged.group], [*open_log(run).own.weighted()])  # type: ignore[union-attr]
        assert again.rewards.tobytes() == scored.rewards.tobytes()


def test_pixels_are_exact_or_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    recipe = load_recipe("configs/methods/demo.yaml", ["rewards=[{use: temporal_iou}]"])
    for size in (28, 280):
        run = tmp_path / str(size)
        write_recipe(run, recipe)
        task = grounding_task(2.0, size)
        log_groups(run, recipe, 1, [Group(task, (rollout(task, "1-2"), rollout(task, "2-3")))])
        clip, picture = next(read_logged_run(run)).groups[0].group.task.media
        assert np.array_equal(picture.frames, task.media[1].frames)
        if size == 28:
            assert np.array_equal(clip.frames, task.media[0].frames)
        else:
            with pytest.raises(RewardError, match="kept this frame shrunk"):
                _ = clip.frames
    for file in (run / "rollouts" / "media").iterdir():
        file.unlink()
    _, picture = next(read_logged_run(run)).groups[0].group.task.media
    with pytest.raises(MediaError, match="copy the run folder whole"):
        _ = picture.frames


def test_a_rollout_that_was_not_trained_and_one_that_was_not_scored_have_no_advantage(tmp_path, monkeypatch):
    """Rewards 1, 0 and, only compared with, 1: mean 2/3, std .57735; the third is in the baseline and has no advantage of its own."""
    monkeypatch.chdir(ROOT)
    recipe = load_recipe("configs/methods/demo.yaml", ["rewards=[{use: exact_match, answer: text}]"])
    run = tmp_path / "run"
    write_recipe(run, recipe)
    task = Task("t", ({"role": "user", "content": "?"},), (), "yes", {})
    log_groups(run, recipe, 1, [Group(task, (rollout(task, "yes"), rollout(task, "no"), rollout(task, "yes", trained=False)))])
    made = result(run)
    assert made["reproduced"] == 0.0
    (step,) = read_logged_run(run)
    assert step.groups[0].advantages.tolist() == pytest.approx([1 / 3 / 0.57745, -2 / 3 / 0.57745, 0.0], abs=1e-4)


def test_token_rewards_are_part_of_the_advantage(tmp_path, monkeypatch):
    """R = 1 and 0, tokens' own -0.5 and +0.5 in sum: equal totals, so no advantage."""
    monkeypatch.chdir(ROOT)
    recipe = load_recipe("configs/methods/demo.yaml", ["rewards=[{use: exact_match, answer: text}]"])
    run = tmp_path / "run"
    write_recipe(run, recipe)
    task = Task("t", ({"role": "user", "content": "?"},), (), "yes", {})
    tokens = (np.array([-0.25, -0.25], np.float32), np.array([0.5], np.float32))
    log_groups(run, recipe, 1, [Group(task, (rollout(task, "yes", [1, 2]), rollout(task, "no", [1])))], [tokens])
    (step,) = read_logged_run(run)
    assert step.groups[0].advantages.tolist() == [0.0, 0.0]
    assert result(run)["reproduced"] == 0.0


def test_a_comparison_by_hand():
    """Group A turns round, group B wakes up, group C dies, in D one rollout is no longer scored."""
    before = [[1, 0, 0, 1], [0, 0], [0, 1], [1, 0, 0.5]]
    after = [[0, 1, 1, 0], [0, 1], [1, 1], [1, 0, NAN]]
    old = [[1, -1, -1, 1], [0, 0], [-0.7, 0.7], [1, -1, 0]]
    new = [[-1, 1, 1, -1], [-0.7, 0.7], [0, 0], [0.7, -0.7, 0]]
    found = compare(*([np.array(group, np.float32) for group in side] for side in (before, after, old, new)))
    assert found == {
        "mean": pytest.approx(6 / 10),
        "not_scored": 1,
        "same": pytest.approx(4 / 11),  # B's first, C's second, D's first two
        "sign_flips": pytest.approx(4 / 11),
        "mean_abs_change": pytest.approx((8 + 1.4 + 1.4 + 0.6) / 11),
        "mean_abs": pytest.approx((4 + 1.4 + 1.4) / 11),
        "alive_in_both": 2,
        "spearman": pytest.approx(0.0),  # A -1, D +1
        "kendall": pytest.approx(0.0),
        "dead": 0.25,
        "revived": 0.25,
        "died": 0.25,
        "winner_changes": 0.5,
    }


def test_a_tie_for_the_best_place_is_a_change_only_when_nobody_keeps_it():
    kept = compare([np.array([1.0, 1.0, 0.0])], [np.array([0.0, 1.0, 0.0])], [np.zeros(3)], [np.zeros(3)])
    lost = compare([np.array([1.0, 1.0, 0.0])], [np.array([0.0, 0.0, 1.0])], [np.zeros(3)], [np.zeros(3)])
    assert (kept["winner_changes"], lost["winner_changes"]) == (0.0, 1.0)


def test_other_rewards_are_compared_and_the_groups_that_change_most_are_shown(logged_run):
    run, _ = logged_run()
    made = result(run, "same", "use=maze_walker", "use=action_format,weight=-1")
    same, walker, form = made["candidates"].values()
    assert (same["same"], same["sign_flips"], same["mean_abs_change"], same["winner_changes"], same["examples"]) == (1.0, 0.0, 0.0, 0.0, [])
    assert walker["winner_changes"] < 0.5
    assert walker["parts"].keys() == {"maze_walker"}
    assert form["mean"] == pytest.approx(-form["parts"]["action_format"])
    assert form["dead"] == 1.0
    assert form["spearman"] is None
    assert form["died"] == pytest.approx(1 - made["logged"]["dead"])
    changes = [example["mean_abs_change"] for example in form["examples"]]
    assert changes == sorted(changes, reverse=True)
    assert len(changes) == 5
    assert {"commit", "command", "machine", "versions"} <= made.keys()


def test_the_table_and_its_options(logged_run):
    run, _ = logged_run()
    text = call(run, "same", steps="20", advantage="use=rloo")
    assert text.startswith(
        "run: 24 rollouts in 4 groups of step 20; advantage RLOO()\nAdvantages of the log, made again from its rewards: "
    )
    assert "| same " in text
    assert " 100.0 % " in text
    for options, error, said in (
        ({"steps": "5-9"}, MmrlError, "none of the steps asked for; there are 10, 20"),
        ({"steps": "9-5"}, RecipeError, "--steps 9-5: give one step, or first-last"),
        ({"num_generations": 8}, RecipeError, "are for TRL's completions"),
        ({"advantage": "use=grp"}, RecipeError, "did you mean 'grpo'"),
    ):
        with pytest.raises(error, match=said):
            call(run, "same", **options)


def test_a_reward_that_cannot_check_these_tasks_says_so(logged_run):
    run, _ = logged_run()
    with pytest.raises(
        RewardError, match=r"step-000010.parquet: 6 of the step's 24 rollouts could not be scored(?s:.*)meta span_s must be"
    ):
        call(run, "use=temporal_iou")


def test_folders_that_are_no_log(tmp_path):
    with pytest.raises(RecipeError, match="no such file or folder"):
        open_log(tmp_path / "nothing")
    with pytest.raises(RecipeError, match="neither a run folder"):
        open_log(tmp_path)
    write_recipe(tmp_path, load_recipe(ROOT / "configs" / "methods" / "demo.yaml"))
    with pytest.raises(MmrlError, match=r"trainer\.log_completions_steps=N"):
        open_log(tmp_path)


def test_rollouts_of_another_format_are_named(logged_run):
    run, _ = logged_run()
    file = run / "rollouts" / "step-000010.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["completion_ids", "task"]), file)
    with pytest.raises(MmrlError, match=r"step-000010.parquet: no column task, completion_ids"):
        open_log(run)


def test_a_replay_imports_no_torch(logged_run):
    run, _ = logged_run()
    code = (
        f"import sys; sys.argv = ['mmrl', 'reward', 'replay', {str(run)!r}, '--probes', '--rewards', 'use=maze_walker']\n"
        "from mmrl.cli import main\n"
        "try: main()\nexcept SystemExit as stop: assert not stop.code\n"
        "print('loaded:', *(m for m in ('torch', 'transformers', 'accelerate') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.rpartition("loaded:")[2].split() == []
    assert "ABOVE THE MEDIAN" in done.stdout or "beats the mean" in done.stdout


# --- a run of the trainer itself --------------------------------------------------------------------------------------------------------


@pytest.mark.trains
@pytest.mark.parametrize(
    "overrides",
    [
        ("rewards=[{use: maze_prefix}, {use: overlong, max_completion_length: 5, cache: 4}, {use: trl, function: 'numbering:numbered'}]",),
        ("update.kl_in_reward=0.05", "advantage={use: reinforce_pp}", "update.num_mini_batches=2"),
        ("rewards=[{use: shuffled, reward: {use: maze_prefix}}]", "update.num_iterations=2", "advantage.scale_rewards=batch"),
    ],
    ids=["several rewards", "kl in the reward", "shuffled"],
)
def test_replay_gives_what_training_gave(tmp_path, tiny_folder, monkeypatch, overrides):
    from mmrl.trainer import train

    (tmp_path / "numbering.py").write_text(TRL_FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    maze = {"use": "maze", "rows": 3, "cols": 3, "moves": "1-2", "split": "train"}
    tree = {
        "model": {"path": str(tiny_folder)},
        "tasks": {"train": maze},
        "rollout": {"num_generations": 4, "max_completion_length": 5},
        "rewards": [{"use": "overlong", "max_completion_length": 5, "cache": 4}],
        "optim": {"learning_rate": 1e-3},
        "trainer": {"max_steps": 2, "tasks_per_step": 4, "trackers": [], "log_completions_steps": 1},
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(tree))
    run = train(load_recipe("recipe.yaml", overrides))
    made = result(run)
    assert made["rollouts"] == 32
    assert made["candidates"]["same"]["same"] == 1.0
    assert made["reproduced"] == 0.0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert made["candidates"]["same"]["mean"] == pytest.approx(np.mean([line["reward"] for line in lines if "reward" in line]), abs=1e-6)


def test_advantages_are_of_a_whole_step(logged_run):
    """Batch-scaled advantages of a step's groups together differ from those of its groups one by one."""
    run, _ = logged_run("advantage.scale_rewards=batch")
    log = open_log(run)
    rewards = read_rewards("use=maze_prefix").weighted()
    whole = replay(log, {"x": rewards}, GRPO("batch"), None)["candidates"]["x"]["mean_abs"]
    parts = [replace(step, groups=(group,)) for step in log.steps for group in step.groups]
    assert whole != pytest.approx(
        replay(replace(log, steps=tuple(parts)), {"x": rewards}, GRPO("batch"), None)["candidates"]["x"]["mean_abs"]
    )
