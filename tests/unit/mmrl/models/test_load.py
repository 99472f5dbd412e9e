import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from mmrl.errors import RecipeError
from mmrl.models import load
from mmrl.models.forward import GroupForward
from mmrl.models.load import load_policy, load_reference, reference_mode
from mmrl.models.processor import PromptMaker
from mmrl.recipe import LoraSection, ModelSection


@pytest.fixture
def rows(make_prompts, picture_task, completion_ids):
    prompts = make_prompts([picture_task("a", (56, 84)), picture_task("b")])
    return [(prompts[n], ids) for n, ids in zip((0, 0, 1), completion_ids(0, [4, 2, 3]), strict=True)]


@pytest.fixture
def section(tiny_folder):
    return lambda **fields: ModelSection(path=str(tiny_folder), **fields)


def logps_and_gradients(policy, rows):
    (part,) = GroupForward(1.0, 0, "flat")(policy, rows)
    (part.logps * torch.linspace(-1, 1, len(part.logps))).sum().backward()
    return part.logps.detach(), {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}


def logps_of(policy, rows):
    return next(iter(GroupForward(1.0, 0, "flat")(policy, rows))).logps


@pytest.fixture
def broken(tiny_folder, tmp_path):
    """`broken(change)`: a copy of the tiny model's folder with `change(folder)` done to it."""

    def build(change):
        folder = tmp_path / "broken"
        shutil.copytree(tiny_folder, folder)
        change(folder)
        return str(folder)

    return build


def edit_config(text=(), **values):
    """A change of config.json, and of its text_config."""

    def change(folder):
        config = json.loads((folder / "config.json").read_text()) | values
        config["text_config"] |= dict(text)
        (folder / "config.json").write_text(json.dumps(config))

    return change


def test_loaded_policy_is_the_saved_one(section, shared_policy, rows):
    policy, _ = load_policy(section())
    with torch.no_grad():
        assert torch.equal(logps_of(policy, rows), logps_of(shared_policy, rows))
    assert all(p.requires_grad and p.dtype == torch.float32 for p in policy.parameters())


def test_qwen3_vl_is_loaded(qwen3_vl, qwen3_vl_folder):
    policy, processor = load_policy(ModelSection(path=str(qwen3_vl_folder), freeze_vision=True))
    assert policy.base.config.model_type == "qwen3_vl"
    assert type(processor).__name__ == "Qwen3VLProcessor"
    for name, weight in qwen3_vl[0].named_parameters():
        loaded = policy.base.get_parameter(name)
        assert torch.equal(loaded, weight)
        assert loaded.requires_grad == (not name.startswith("model.visual."))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, r"model\.path: '.*broken' is no model that can be opened \(.*\); give a folder or a hub id"),
        (lambda f: (f / "config.json").write_text("{"), "is no model that can be opened"),
        (edit_config(model_type="bert"), r"is of type 'bert'; supported: qwen2_5_vl, qwen2_vl"),
        (edit_config({"num_hidden_layers": 3}), r"is no model that can be opened \(.*num_hidden_layers"),
        (edit_config(model_type="no_such_model"), "is no model that can be opened .*no_such_model"),
        (lambda f: [(f / name).unlink() for name in ("processor_config.json", "tokenizer.json")], "has no processor that can be opened"),
    ],
    ids=["missing", "broken config", "bert", "contradiction", "unknown type", "no processor"],
)
def test_a_model_that_cannot_be_used_is_refused_before_its_weights_are_read(broken, change, message, monkeypatch):
    path = broken(change)
    monkeypatch.setattr(load, "_load", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(RecipeError, match=message):
        load_policy(ModelSection(path=path))


def test_the_reference_is_checked_before_weights_are_read(section, broken, monkeypatch):
    path = broken(edit_config(model_type="bert"))
    monkeypatch.setattr(load, "_load", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(RecipeError, match=r"model\.reference: '.*broken' is of type 'bert'"):
        load_policy(section(reference=path))


def cut_in_half(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "the weights of .* cannot be loaded"),
        (cut_in_half, "the weights of .* cannot be loaded"),
        (
            edit_config({"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3}),
            r"lacks \d+ of the weights that its config.json asks for.*layers\.2\.",
        ),
        (
            edit_config({"intermediate_size": 80}),
            r"lacks 6 of the weights .* or has them in another shape.*mlp",
        ),
    ],
    ids=["missing", "truncated", "layer missing", "other shape"],
)
@pytest.mark.filterwarnings("ignore")
def test_no_weight_is_made_up(broken, change, message):
    """transformers fills what a checkpoint lacks with random numbers."""
    with pytest.raises(RecipeError, match=message):
        load_policy(ModelSection(path=broken(change)))


def test_home_folder_in_a_path(tiny_folder, monkeypatch):
    monkeypatch.setenv("HOME", str(tiny_folder.parent))
    assert load.model_path(f"~/{tiny_folder.name}") == str(tiny_folder)
    assert load.model_path("owner/name") == "owner/name"


def test_freeze_vision(section, rows):
    policy, _ = load_policy(section(freeze_vision=True))
    _, gradients = logps_and_gradients(policy, rows)
    frozen = {name for name, p in policy.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in policy.named_parameters() if ".visual." in name}
    assert gradients.keys() == {name for name, p in policy.named_parameters() if p.requires_grad}


def test_bfloat16(section, rows):
    policy, _ = load_policy(section(dtype="bfloat16"))
    assert {p.dtype for p in policy.parameters()} == {torch.bfloat16}
    assert logps_of(policy, rows).dtype == torch.float32


def test_gradient_checkpointing_changes_no_number(section, rows):
    plain, _ = load_policy(section())
    expected = logps_and_gradients(plain.train(), rows)
    policy, _ = load_policy(section(gradient_checkpointing=True))
    layer, calls = policy.base.model.language_model.layers[0].mlp, []
    layer.register_forward_pre_hook(lambda *_: calls.append(1))
    logps, gradients = logps_and_gradients(policy.train(), rows)
    assert len(calls) == 2  # forward, and again in the backward
    assert torch.equal(logps, expected[0])
    assert gradients.keys() == expected[1].keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[1][name], rtol=1e-5, atol=1e-5)


def test_lora_trains_its_adapter_alone(section, rows):
    policy, _ = load_policy(section(lora=LoraSection(r=4, alpha=8)))
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in policy.named_parameters() if ".lora_" in name}
    assert len(trained) == 2 * 7 * 2  # A and B of 7 layers in each of 2 blocks, none in the vision tower
    assert not any("visual" in name for name in trained)
    _, gradients = logps_and_gradients(policy, rows)
    assert gradients.keys() == trained
    assert all(g.norm() > 0 for name, g in gradients.items() if "lora_B" in name)  # A's is 0 while B is


def test_lora_switched_off_is_the_base_model(section, shared_policy, rows):
    """A new adapter adds nothing (B = 0); a moved one does, and off it is the base again: the reference without a second model."""
    settings = section(lora=LoraSection(r=4))
    policy, _ = load_policy(settings)
    policy.eval()
    assert load_reference(settings, policy) is None
    with torch.no_grad():
        base = logps_of(shared_policy, rows)
        torch.testing.assert_close(logps_of(policy, rows), base, rtol=0, atol=1e-6)
        for name, p in policy.named_parameters():
            if "lora_B" in name:
                p.fill_(0.05)
        assert (logps_of(policy, rows) - base).abs().max() > 1e-2
        with reference_mode(policy, None) as reference:
            assert torch.equal(logps_of(reference, rows), base)
        assert (logps_of(policy, rows) - base).abs().max() > 1e-2


def test_lora_with_checkpointing_and_bfloat16_trains(section, rows):
    settings = section(lora=LoraSection(r=4, dropout=0.1), gradient_checkpointing=True, dtype="bfloat16")
    policy, _ = load_policy(settings)
    _, gradients = logps_and_gradients(policy.train(), rows)
    assert all(g.isfinite().all() for g in gradients.values())
    assert any(g.norm() > 0 for g in gradients.values())


def test_lora_target_modules(section):
    policy, _ = load_policy(section(lora=LoraSection(target_modules="q_proj")))
    assert {name.split(".lora_")[0].split(".")[-1] for name, _ in policy.named_parameters() if ".lora_" in name} == {"q_proj"}
    with pytest.raises(RecipeError, match=r"model\.lora\.target_modules: got \['no_such'\]; "):
        load_policy(section(lora=LoraSection(target_modules=("no_such",))))
    with pytest.raises(RecipeError, match=r"model\.lora\.target_modules: lm_head cannot carry an adapter"):
        load_policy(section(lora=LoraSection(target_modules=("q_proj", "lm_head"))))


def test_reference_is_a_frozen_model_of_its_own(section, rows):
    policy, _ = load_policy(section())
    reference = load_reference(section(), policy)
    assert reference is not None
    assert not reference.training
    assert not any(p.requires_grad for p in reference.parameters())
    with torch.no_grad():
        before = logps_of(reference, rows)
        next(policy.parameters()).add_(1.0)
        with reference_mode(policy, reference) as forwarded:
            assert torch.equal(logps_of(forwarded, rows), before)


@pytest.fixture(params=["tiny_folder", "qwen3_vl_folder"])
def either_folder(request):
    """Of Qwen2.5-VL, whose visual token is 28 x 28 pixels, and of Qwen3-VL, 32 x 32."""
    return str(request.getfixturevalue(request.param))


@pytest.mark.parametrize("low", [4096, 40_000])
@pytest.mark.parametrize("high", [40_000, 200_000])
def test_a_picture_has_as_many_tokens_as_its_budget_allows(either_folder, picture_task, low, high):
    policy, processor = load_policy(ModelSection(either_folder, min_pixels=low, max_pixels=high))
    make_prompts, block = PromptMaker(processor, policy.layout), 2 * processor.image_processor.patch_size
    tokens = []
    for size in ((50, 131), (64, 64), (200, 201), (480, 640)):
        (prompt,) = make_prompts([picture_task("a", size)])
        height, width = smart_resize(*size, factor=block, min_pixels=low, max_pixels=high)
        tokens.append(int((prompt.ids == policy.layout.image_token_id).sum()))
        assert tokens[-1] == height * width // block**2
        picture = Image.fromarray(prompt.task.media[0].frames[0])
        by_transformers = processor(text=[prompt.text], images=[picture], return_tensors="np")
        assert by_transformers["input_ids"][0].tolist() == prompt.ids.tolist()
        np.testing.assert_array_equal(by_transformers["pixel_values"], prompt.mm_inputs["pixel_values"])
    assert len(set(tokens)) > 1 or low == high


def test_without_a_budget_the_processor_is_as_it_was_saved_and_clips_never_have_one(either_folder):
    saved = AutoProcessor.from_pretrained(either_folder)
    _, plain = load_policy(ModelSection(either_folder))
    _, bounded = load_policy(ModelSection(either_folder, max_pixels=40_000))
    assert plain.image_processor.to_dict() == saved.image_processor.to_dict()
    assert bounded.image_processor.to_dict() == saved.image_processor.to_dict() | {
        "size": {"shortest_edge": saved.image_processor.size["shortest_edge"], "longest_edge": 40_000}
    }
    assert plain.video_processor.to_dict() == bounded.video_processor.to_dict() == saved.video_processor.to_dict()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_pixels": 1000}, r"model\.min_pixels: 3136 is above model\.max_pixels, 1000; .* give both"),
        ({"min_pixels": 2_000_000}, r"model\.min_pixels: 2000000 is above model\.max_pixels, 1003520; .* give both"),
        ({"min_pixels": 9, "max_pixels": 8}, r"model\.min_pixels: 9 is above model\.max_pixels, 8; "),
    ],
)
def test_a_bound_that_contradicts_the_other_is_refused_before_weights_are_read(section, fields, message, monkeypatch):
    monkeypatch.setattr(load, "_load", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(RecipeError, match=message):
        load_policy(section(**fields))
