"""The run folder's files, and a step's rollouts in numbers."""

import json
import math
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmrl.metrics import GroupNumbers, MetricsFile, manifest, rollout_metrics, save_media, write_json, write_rollouts
from mmrl.types import Completion, Group, Media, Prompt, Rollout, ScoredGroup, Task

NAN = float("nan")


def test_metrics_file_keeps_lines_and_writes_null_for_what_json_cannot_say(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.write({"step": 1, "loss": 0.5, "grad_norm": math.nan, "entropy": math.inf})
    file.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": 0.5, "grad_norm": None, "entropy": None}


def test_metrics_file_goes_on_after_its_checkpoint(tmp_path):
    """What came after the checkpoint, half a line included, is dropped."""
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    file.write({"step": 1})
    size = file.sync()
    file.write({"step": 2})
    file.close()
    path.write_text(path.read_text() + '{"step": 3, "lo')
    again = MetricsFile(path, size)
    again.write({"step": 9})
    again.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 9]


def test_metrics_file_that_was_cut_is_refused(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="has 3 bytes, its checkpoint was made at 10"):
        MetricsFile(tmp_path / "metrics.jsonl", 10)


def test_json_is_whole_or_not_there(tmp_path):
    path = tmp_path / "sub" / "best.json"
    write_json(path, {"value": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"value": NAN})
    assert json.loads(path.read_text()) == {"value": 1}
    assert [p.name for p in path.parent.iterdir()] == ["best.json"]


def test_manifest_says_what_made_the_run():
    made = manifest("name", 3, 117)
    assert (made["name"], made["seed"], made["model_parameters"], made["status"]) == ("name", 3, 117, "running")
    assert {"python", "torch", "transformers", "numpy"} <= made["versions"].keys()
    assert made["machine"]["cores"] >= 1


def test_pictures_and_frames_are_saved_once_and_as_they_were(tmp_path):
    """The clip's first frame is the picture, so two files are enough."""
    frames = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), np.uint8)
    media = (Media(frames[:1]), Media(frames, np.array([0.0, 0.5])))
    saved = save_media(tmp_path, media)
    assert saved == save_media(tmp_path, (Media(frames[:1].copy()), media[1]))
    assert saved["videos"] == [{"frames": [*saved["images"], saved["videos"][0]["frames"][1]], "timestamps_s": [0.0, 0.5]}]
    for path, frame in zip(saved["videos"][0]["frames"], frames, strict=True):
        assert np.array_equal(np.asarray(Image.open(tmp_path / path)), frame)
    assert len(list((tmp_path / "rollouts" / "media").iterdir())) == 2
    (tmp_path / saved["images"][0]).write_bytes(b"")  # what a power cut can leave
    save_media(tmp_path, media)
    assert np.array_equal(np.asarray(Image.open(tmp_path / saved["images"][0])), frames[0])


def test_large_frames_of_a_clip_are_shrunk_and_pictures_are_not(tmp_path):
    frames = np.full((2, 300, 600, 3), 90, np.uint8)
    saved = save_media(tmp_path, (Media(frames, np.array([0.0, 1.0])), Media(frames[:1])))
    (frame, again), (picture,) = saved["videos"][0]["frames"], saved["images"]
    assert frame == again
    assert Image.open(tmp_path / frame).size == (256, 128)
    assert Image.open(tmp_path / picture).size == (600, 300)


def group_numbers(rewards, success, lengths, truncated, prompt_length=10):
    rewards = np.array(rewards, np.float32)
    return GroupNumbers(rewards, {"part": rewards}, np.array(success, np.float32), np.array(lengths), np.array(truncated), prompt_length)


def test_rollout_metrics_by_hand():
    """Rewards 0 2 (std, ddof 1: sqrt 2) and 1 1 NaN (std 0): mean 4 / 4; success 1/2 and 0/3: mean of groups 0.25."""
    first = group_numbers([0, 2], [0, 1], [4, 6], [False, True])
    second = group_numbers([1, 1, NAN], [0, 0.5, NAN], [1, 2, 3], [False, False, False])
    out = rollout_metrics([first, second])
    assert out == pytest.approx(
        {
            "reward": 1.0, "reward_std": math.sqrt(2) / 2, "frac_reward_zero_std": 0.5, "success": 0.25,
            "completions/mean_length": 3.2, "completions/min_length": 1, "completions/max_length": 6, "completions/clipped_ratio": 0.2,
            "rewards/failed": 1, "rewards/part/mean": 1.0, "rewards/part/std": math.sqrt(0.5),
        }
    )  # fmt: skip


def test_rollout_metrics_of_a_step_in_which_every_reward_failed():
    out = rollout_metrics([group_numbers([NAN, NAN], [0, 0], [1, 1], [False, False])])
    assert math.isnan(out["reward"])
    assert out["rewards/failed"] == 2
    assert "rewards/part/mean" not in out


def test_rollouts_that_a_judge_gave_up_are_counted_by_kind():
    first, second = (group_numbers([0, 2], [0, 1], [4, 6], [False, True]) for _ in range(2))
    out = rollout_metrics([replace(first, unscored={"part": "outage"}), second, replace(second, unscored={"part": "malformed"}), first])
    assert (out["rewards/part/outage"], out["rewards/part/malformed"]) == (2, 2)
    assert "rewards/part/outage" not in rollout_metrics([second])


def test_rollouts_are_a_row_each(tmp_path):
    class Tokenizer:
        def decode(self, ids):
            return f"<{ids[0]}>"

    task = Task("t/1", (), (Media(np.zeros((1, 2, 2, 3), np.uint8)),), "up", {"moves": 1})
    prompt = Prompt(task, "Go.", np.array([0]), {})
    completions = [Completion(np.array([5, 6]), "five six", np.array([-1.0, -2.0], np.float32), "stop", 3) for _ in range(2)]
    rollouts = tuple(Rollout(prompt, completion, prompt) for completion in completions)
    scored = ScoredGroup(Group(task, rollouts), np.array([1.0, NAN], np.float32), {"part": np.array([1.0, NAN], np.float32)})
    signals = {id(rollouts[0]): {"old_logps": np.array([-1.5, -2.5], np.float32), "old_entropy": np.array([0.5, 0.25], np.float32)}}
    path = write_rollouts(tmp_path, 10, [scored], [np.array([1.0, 0.0])], {id(rollouts[0]): 0.7}, signals, Tokenizer())
    one, other = pq.read_table(path).to_pylist()
    assert path.name == "step-000010.parquet"
    assert one["tokens"] == ["<5>", "<6>"]
    assert (one["task_id"], one["rollout"], one["advantage"], one["policy_version"]) == ("t/1", 0, pytest.approx(0.7), 3)
    assert one["logps"] == [-1.5, -2.5]
    assert one["entropy"] == [0.5, 0.25]
    assert (one["view"], one["view_logps"], one["view_images"]) == (None, None, None)
    assert other["logps"] is None
    assert json.loads(other["parts"]) == {"part": None}
    assert math.isnan(other["reward"])
    assert (tmp_path / one["images"][0]).is_file()
    assert one["videos"] == []
    assert not list(tmp_path.rglob("*.part"))
    assert one["unscored"] == "{}"
    away = replace(scored, unscored={"judge": ("outage", "HTTP 503")})
    path = write_rollouts(tmp_path, 20, [away], [np.array([1.0, 0.0])], {}, {}, Tokenizer())
    assert [json.loads(row["unscored"]) for row in pq.read_table(path).to_pylist()] == [{"judge": "outage: HTTP 503"}] * 2


def test_arms_are_counted_apart_and_the_headline_is_the_policys_own_tries():
    """Two tries earn 0 and 1, a label 5; one group has no try at all."""
    whole = GroupNumbers(
        np.array([0, 1, 5], np.float32), {"part": np.array([0, 2, NAN], np.float32)}, np.array([0, 1, 1], np.float32), np.array([2, 4, 9]),
        np.array([False, True, False]), 10, arms=("plain", "plain", "label"), attempts=np.array([True, True, False]),
    )  # fmt: skip
    gated = GroupNumbers(
        np.array([0.5], np.float32), {"part": np.array([NAN], np.float32)}, np.array([0], np.float32), np.array([1]), np.array([False]), 10,
        arms=("perception",), attempts=np.array([False]),
    )  # fmt: skip
    out = rollout_metrics([gated, whole])
    assert (out["reward"], out["success"], out["completions/mean_length"], out["rewards/part/mean"]) == (0.5, 0.5, 3.0, 1.0)
    assert (out["arm/label/reward"], out["arm/label/success"], out["arm/label/completions/mean_length"]) == (5.0, 1.0, 9.0)
    assert (out["arm/plain/reward"], out["arm/perception/reward"]) == (0.5, 0.5)
    assert "arm/label/rewards/part/mean" not in out
    assert math.isnan(rollout_metrics([gated])["reward"])
