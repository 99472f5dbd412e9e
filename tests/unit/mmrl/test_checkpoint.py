"""Checkpoints: what is written is what is read, damage is found and named, and a kill leaves nothing half done."""

import json
import shutil

import pytest
import torch
import yaml
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmrl import checkpoint as ckpt
from mmrl.errors import CheckpointError
from mmrl.models.load import load_policy
from mmrl.optim import Optimizer
from mmrl.recipe import LoraSection, ModelSection, OptimSection, load_recipe, to_yaml


def stepped(policy, seed=0):
    """An optimizer that has made one step of a keyed gradient."""
    optimizer = Optimizer(policy, OptimSection(learning_rate=1e-2))
    generator = torch.Generator().manual_seed(seed)
    for master in optimizer.masters:
        master.grad = torch.randn(master.shape, generator=generator)
    optimizer.step(1e-2, 1.0)
    return optimizer


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_folder):
    """A finished checkpoint-4, with the policy and optimizer it was made of."""
    policy, processor = load_policy(ModelSection(str(tiny_folder)))
    optimizer = stepped(policy)
    run = tmp_path_factory.mktemp("run")
    return ckpt.save_checkpoint(run, 4, policy, processor, optimizer, {"sampler": {}, "recipe": "x"}), policy, optimizer


@pytest.fixture
def copied(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "checkpoint-4")
    return tmp_path / "checkpoint-4"


def test_transformers_opens_it_unchanged(whole):
    folder, policy, _ = whole
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), policy.model.parameters(), strict=True))
    assert AutoProcessor.from_pretrained(folder).tokenizer.eos_token == "<|im_end|>"


def test_the_budget_of_a_picture_is_saved_with_the_processor(tiny_folder, tmp_path):
    policy, processor = load_policy(ModelSection(str(tiny_folder), min_pixels=5000, max_pixels=40_000))
    folder = ckpt.save_checkpoint(tmp_path, 1, policy, processor, stepped(policy), {})
    assert dict(AutoProcessor.from_pretrained(folder).image_processor.size) == {"shortest_edge": 5000, "longest_edge": 40_000}


def test_weights_and_optimizer_come_back_bit_for_bit(whole, tiny_folder):
    folder, policy, optimizer = whole
    other, _ = load_policy(ModelSection(str(tiny_folder)))
    again = Optimizer(other, OptimSection())
    ckpt.load_weights(folder, other)
    ckpt.load_optimizer(folder, again)
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), policy.parameters(), strict=True))
    restored = again.state_tensors()
    assert restored.keys() == optimizer.state_tensors().keys()
    assert all(torch.equal(value, restored[name]) for name, value in optimizer.state_tensors().items())
    assert ckpt.read_state(folder) == {"step": 4, "sampler": {}, "recipe": "x"}


def test_adapters_are_kept_and_merged(tiny_folder, tmp_path):
    """Whoever opens the folder gets the merged weights; training goes on from the adapter."""
    section = ModelSection(str(tiny_folder), lora=LoraSection(r=2))
    policy, processor = load_policy(section)
    folder = ckpt.save_checkpoint(tmp_path, 1, policy, processor, stepped(policy), {})
    other, _ = load_policy(section)
    ckpt.load_weights(folder, other)
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), policy.parameters(), strict=True))
    merged = AutoModelForImageTextToText.from_pretrained(folder).state_dict()
    plain = AutoModelForImageTextToText.from_pretrained(tiny_folder).state_dict()
    changed = {name for name, value in merged.items() if not torch.equal(value, plain[name])}
    assert changed
    assert all("language_model" in name and "_proj" in name for name in changed)
    ckpt.verify(folder)


def test_a_bfloat16_model_keeps_its_float32_masters(tiny_folder, tmp_path):
    section = ModelSection(str(tiny_folder), dtype="bfloat16")
    policy, processor = load_policy(section)
    optimizer = stepped(policy)
    folder = ckpt.save_checkpoint(tmp_path, 1, policy, processor, optimizer, {})
    other, _ = load_policy(section)
    again = Optimizer(other, OptimSection())
    ckpt.load_weights(folder, other)
    ckpt.load_optimizer(folder, again)
    assert all(torch.equal(a, b) for a, b in zip(again.masters, optimizer.masters, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), policy.parameters(), strict=True))


FILES = ("model.safetensors", "optimizer.safetensors", "trainer_state.json", "config.json", "tokenizer.json")


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("damage", "word"), [(flip, "damaged, checksum"), (cut, "damaged, checksum"), (lambda f: f.unlink(), "missing")])
def test_damage_is_found_and_named(copied, name, damage, word):
    ckpt.verify(copied)
    damage(copied / name)
    with pytest.raises(CheckpointError, match=f"{name}: {word}.*; delete .*checkpoint-4 to go on from the checkpoint before it"):
        ckpt.verify(copied)


@pytest.mark.parametrize("content", ["{", "[]", "{}", "null", '{"config.json": "0"}'])
def test_broken_checksums_are_found(copied, content):
    (copied / "checksums.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"checksums.json: .*; delete"):
        ckpt.verify(copied)


def test_a_cut_safetensors_file_is_a_checkpoint_error_even_unverified(copied):
    cut(copied / "optimizer.safetensors")
    with pytest.raises(CheckpointError, match=r"optimizer.safetensors: cannot be read"):
        ckpt.load_optimizer(copied, Optimizer(torch.nn.Linear(1, 1), OptimSection()))


def folders(run):
    return sorted(path.name for path in run.iterdir())


def make(run, *names):
    for name in names:
        (run / name).mkdir(parents=True)
        (run / name / "file").write_text(name)


def test_the_newest_finished_checkpoint_is_the_one_with_the_highest_step(tmp_path):
    assert ckpt.latest_checkpoint(tmp_path) is None
    make(tmp_path, "checkpoint-9", "checkpoint-10", ".checkpoint-11.part", "checkpoint-x")
    assert ckpt.latest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


def test_prune_keeps_the_newest_and_the_protected(tmp_path):
    make(tmp_path, *(f"checkpoint-{step}" for step in (2, 4, 6, 8, 10)))
    ckpt.prune(tmp_path, 2, [4, -1])
    assert folders(tmp_path) == ["checkpoint-10", "checkpoint-4", "checkpoint-8"]


def test_tidy_removes_what_is_half_done(tmp_path):
    make(tmp_path, "checkpoint-2", ".checkpoint-4.part", ".checkpoint-1.gone", "rollouts")
    (tmp_path / ".best.json.part").write_text("{")
    (tmp_path / "rollouts" / ".step-000002.parquet.part").write_text("")
    ckpt.tidy(tmp_path)
    assert folders(tmp_path) == ["checkpoint-2", "rollouts"]
    assert folders(tmp_path / "rollouts") == ["file"]


@pytest.mark.parametrize("killed", ["before the second rename", "after it"])
def test_a_checkpoint_that_was_being_replaced_is_there_after_a_kill(tmp_path, killed):
    make(tmp_path, ".checkpoint-4.old")
    if killed == "after it":
        make(tmp_path, "checkpoint-4")
    else:
        make(tmp_path, ".checkpoint-4.part")
    ckpt.tidy(tmp_path)
    assert folders(tmp_path) == ["checkpoint-4"]
    assert (tmp_path / "checkpoint-4" / "file").read_text() == ("checkpoint-4" if killed == "after it" else ".checkpoint-4.old")


def test_a_checkpoint_can_be_replaced(tiny_folder, tmp_path):
    policy, processor = load_policy(ModelSection(str(tiny_folder)))
    optimizer = stepped(policy)
    for value in (1, 2):
        ckpt.save_checkpoint(tmp_path, 3, policy, processor, optimizer, {"value": value})
    assert folders(tmp_path) == ["checkpoint-3"]
    assert ckpt.read_state(tmp_path / "checkpoint-3")["value"] == 2


def recipe_file(tmp_path, tiny_folder, **optim):
    recipe = {
        "model": {"path": str(tiny_folder)}, "tasks": {"train": {"use": "maze", "split": "train"}}, "optim": optim,
        "rewards": [{"use": "maze_prefix"}], "trainer": {"max_steps": 6, "name": "a"},
    }  # fmt: skip
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path / "a.yaml"


@pytest.mark.parametrize(
    "change",
    ["trainer.max_steps=9", "trainer.name=b", "trainer.output_dir=elsewhere", "trainer.save_steps=2", "trainer.log_completions_steps=3",
     "trainer.max_minutes=5", "trainer.early_stop={metric: reward, patience: 3}", "update.per_device_train_batch_size=2",
     "trainer.trackers=[]"],
)  # fmt: skip
def test_what_does_not_change_the_learning_may_change(tmp_path, tiny_folder, change):
    path = recipe_file(tmp_path, tiny_folder)
    ckpt.refuse_other_recipe(tmp_path, to_yaml(load_recipe(path)), load_recipe(path, [change]))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("trainer.seed=7", "trainer.seed: was 0, now 7"),
        ("model.path=other/model", "model.path: was .*, now other/model"),
        ("optim.learning_rate=0.5", "optim.learning_rate: was 1e-06, now 0.5"),
        ("rollout.num_generations=4", "rollout.num_generations: was 8, now 4"),
        ("rewards.0.weight=0.5", "rewards.0.weight: was 1.0, now 0.5"),
        ("model.lora={r: 4}", r"model.lora.r: was \(not set\), now 4"),
        ("tasks.train.moves=1-2", "tasks.train.moves: was 1-5, now 1-2"),
        ("model.max_pixels=40000", "model.max_pixels: was None, now 40000"),
        ("losses=[{use: gspo}]", "losses.0.use: was clipped_surrogate, now gspo"),
    ],
)
def test_what_changes_the_learning_is_refused_with_key_and_values(tmp_path, tiny_folder, change, line):
    path = recipe_file(tmp_path, tiny_folder)
    with pytest.raises(CheckpointError, match=f"(?s){line}.*Give the old values back, or start a run under another trainer.name"):
        ckpt.refuse_other_recipe(tmp_path, to_yaml(load_recipe(path)), load_recipe(path, [change]))


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_max_steps_is_held_where_the_learning_rate_depends_on_it(tmp_path, tiny_folder, kind):
    path = recipe_file(tmp_path, tiny_folder, lr_scheduler_type=kind)
    with pytest.raises(CheckpointError, match=r"trainer.max_steps: was 6, now 9"):
        ckpt.refuse_other_recipe(tmp_path, to_yaml(load_recipe(path)), load_recipe(path, ["trainer.max_steps=9"]))


def test_a_checkpoint_lists_every_file_of_its_own(whole):
    folder, _, _ = whole
    listed = json.loads((folder / "checksums.json").read_text())
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == {*listed, "checksums.json"}
