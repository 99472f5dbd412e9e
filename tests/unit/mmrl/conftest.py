from dataclasses import replace

import numpy as np
import pytest
import torch

from data_pipelines.tasks.maze import MazeTasks
from mmrl.models import tiny
from mmrl.models.policy import Policy
from mmrl.models.positions import VisionLayout
from mmrl.models.processor import PromptMaker
from mmrl.models.quiet import quiet_transformers
from mmrl.models.windows import own_attention, take_windows
from mmrl.types import Media, Prompt, Task

SHAPE = tiny.TinyShape(
    vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
    vision_depth=2, vision_hidden_size=32, initializer_range=0.15,
)  # fmt: skip
"""Two layers of each kind, so that what a layer is given counts; weights large enough that a wrong position or a lost picture is seen in
the log-probabilities."""


@pytest.fixture(scope="session")
def tiny_shape():
    return SHAPE


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """An untrained tiny model, saved: a folder to name in a recipe's `model.path`."""
    folder = tmp_path_factory.mktemp("tiny-model")
    with quiet_transformers():
        tiny.save(*tiny.build_untrained(SHAPE), folder)
    return folder


@pytest.fixture(scope="session")
def shared_policy():
    """An untrained tiny policy. Shared by the whole session: leave its weights as they are (`new_policy` makes one to change)."""
    return Policy(tiny.build_untrained(SHAPE)[0]).eval()


@pytest.fixture
def new_policy():
    """`new_policy(seed=0)`: an untrained tiny policy of the test's own; seed 0 has the weights of `shared_policy` and `tiny_folder`."""
    return lambda seed=0: Policy(tiny.build_untrained(SHAPE, seed)[0])


@pytest.fixture(scope="session")
def processor():
    """The processor of every tiny model here."""
    return tiny.build_processor(tiny.build_tokenizer(SHAPE.vocab_size))


@pytest.fixture(scope="session")
def make_prompts(processor, shared_policy):
    return PromptMaker(processor, shared_policy.layout)


@pytest.fixture(scope="session")
def make_timed_prompts(processor, shared_policy):
    """The same, with times as text between a clip's frame pairs."""
    return PromptMaker(processor, shared_policy.layout, timestamps="interleaved")


@pytest.fixture(scope="session")
def qwen3_vl():
    """An untrained tiny Qwen3-VL and its processor, float32. Shared by the whole session: leave its weights as they are. Three layers,
    so that both vision layers' features are added below the last, where other tokens still see them."""
    model, processor = tiny.build_untrained(replace(SHAPE, num_hidden_layers=3), family="qwen3_vl")
    return model.eval(), processor


@pytest.fixture(scope="session")
def qwen3_vl_folder(tmp_path_factory, qwen3_vl):
    """The same, saved: a folder to name in a recipe's `model.path`."""
    folder = tmp_path_factory.mktemp("tiny-qwen3-vl")
    with quiet_transformers():
        tiny.save(*qwen3_vl, folder)
    return folder


@pytest.fixture(scope="session")
def make_qwen3_vl_prompts(qwen3_vl):
    model, processor = qwen3_vl
    return PromptMaker(processor, VisionLayout.of(model.config))


@pytest.fixture(scope="session")
def maze_tasks():
    """3 x 3 mazes of one or two moves: 84 x 84 pixels, 9 visual tokens."""
    return MazeTasks("train", seed=0, rows=3, cols=3, moves="1-2")


@pytest.fixture(scope="session")
def picture_task():
    """`picture_task("a", (56, 84), 4, text="Go.")`: a task whose message holds random pictures (height, width) and clips of 56 x 56
    pixels (a number: its frames; `fps` sets their times), in this order, then the text. Pixels depend on the name."""

    def build(name: str, *media: tuple[int, int] | int, text: str = "Go from O to T.", fps: float = 2.0) -> Task:
        rng = np.random.default_rng(list(name.encode()))
        made = []
        for item in media:
            frames, (height, width) = (item, (56, 56)) if isinstance(item, int) else (1, item)
            times = np.arange(frames) / fps if isinstance(item, int) else None
            made.append(Media(rng.integers(0, 256, (frames, height, width, 3), np.uint8), times))
        parts = [{"type": "video" if medium.is_video else "image"} for medium in made]
        return Task(name, ({"role": "user", "content": [*parts, {"type": "text", "text": text}]},), tuple(made), "<|up|>", {})

    return build


@pytest.fixture(scope="session")
def completion_ids(shared_policy):
    """`completion_ids(0, [3, 1])`: int64 arrays of random ids of these lengths, none of them a vision token."""
    allowed = np.setdiff1d(np.arange(SHAPE.vocab_size), shared_policy.banned_ids.numpy())
    return lambda seed, lengths: [np.random.default_rng([seed, n]).choice(allowed, length) for n, length in enumerate(lengths)]


@pytest.fixture(scope="session")
def naive_logps():
    """`naive_logps(policy, prompt, completion ids, temperature)`: transformers' own full forward of one row: float32 [T] with
    gradient, positions its own unless given (int64 [3, P + T]). The reference that every other path must meet."""

    def run(policy: Policy, prompt: Prompt, ids: np.ndarray, temperature: float, positions: np.ndarray | None = None) -> torch.Tensor:
        full = torch.from_numpy(np.concatenate([prompt.ids, ids]))[None]
        media = {name: torch.from_numpy(value) for name, value in prompt.mm_inputs.items()}
        kinds = torch.zeros_like(full)
        kinds[full == policy.layout.image_token_id] = 1
        kinds[full == policy.layout.video_token_id] = 2
        given = {} if positions is None else {"position_ids": torch.from_numpy(positions)[:, None]}
        own_attention(policy.base.model.visual)
        out = policy.base(input_ids=full, attention_mask=torch.ones_like(full), mm_token_type_ids=kinds, use_cache=False, **media, **given)
        take_windows(policy.base.model.visual)
        logits = out.logits[0, len(prompt.ids) - 1 : -1] / temperature
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        logits = logits.index_fill(1, policy.banned_ids, -torch.inf)
        return logits.log_softmax(-1).gather(1, torch.from_numpy(ids)[:, None])[:, 0]

    return run
