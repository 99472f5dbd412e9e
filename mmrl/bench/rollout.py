"""`mmrl bench rollout`: a group's completions by transformers' own generation, as trainers call it, and by mmrl's engine, in turn."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from mmrl.bench.measure import peak_mb, seconds
from mmrl.bench.report import write_bench
from mmrl.bench.shapes import SHAPES, random_policy, random_prompt
from mmrl.engines.hf import MERGE_ON, HFEngine
from mmrl.errors import RecipeError
from mmrl.models.policy import Policy
from mmrl.models.stream import stack_media
from mmrl.protocols import Sampling
from mmrl.types import Prompt


class _Tokenizer:
    """Ids in, ids out: random weights have no words. No token ends a completion, so all arms make the same number."""

    pad_token_id = 2
    eos_token_id = -1

    def batch_decode(self, ids: Sequence[Any], skip_special_tokens: bool = False) -> list[str]:
        return ["" for _ in ids]


def command(prompt: int, num_generations: int, tokens: int, size: str, rounds: int, file: Path | None) -> None:
    """What the command line calls."""
    if size not in SHAPES:
        raise RecipeError(f"--model-size: got {size!r}; known: {', '.join(SHAPES)}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(1)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    say = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
    write_bench(file, [run(size, prompt, num_generations, tokens, device=device, dtype=dtype, rounds=rounds, say=say)])


def run(
    size: str, prompt_tokens: int, num_generations: int, tokens: int, *, device: str, dtype: torch.dtype, rounds: int,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """Medians of `rounds` rounds. First all arms make the likeliest completion, which must be one and the same."""
    policy = random_policy(size, device, dtype).eval()
    policy.base.generation_config.eos_token_id = []
    prompt = random_prompt(policy, prompt_tokens)
    engine = HFEngine()
    engine.attach(SimpleNamespace(tokenizer=_Tokenizer()))
    engine.load_policy(policy, 0)

    def ours(temperature: float) -> list[list[int]]:
        sampling = Sampling(temperature=temperature, max_completion_length=tokens)
        (group,) = engine.generate([prompt], num_generations, sampling)
        return [completion.ids.tolist() for completion in group]

    arms: dict[str, Callable[[], Any]] = {
        "copies": lambda: _generate(policy, prompt, num_generations, 1, tokens, True),
        "num_return_sequences": lambda: _generate(policy, prompt, 1, num_generations, tokens, True),
        "shared": lambda: ours(1.0),
    }
    likeliest = ours(0.0)[0]
    theirs = _generate(policy, prompt, 1, 1, tokens, False)[0]
    peaks = {name: peak_mb(arm, device)[1] for name, arm in arms.items()}
    costs: dict[str, list[float]] = {name: [] for name in arms}
    for n in range(rounds):
        for name, arm in arms.items():
            costs[name].append(seconds(arm, device))
            say(f"  round {n + 1}: {name} {costs[name][-1]:.2f} s")
    median = {name: statistics.median(of) for name, of in costs.items()}
    return {
        "model_size": size, "prompt": prompt_tokens, "num_generations": num_generations, "tokens": tokens, "rounds": rounds,
        "dtype": str(dtype).removeprefix("torch."), "rows_are_merged": device in MERGE_ON,
        "same_likeliest_completion": likeliest == theirs,
        "speedup": round(median["copies"] / median["shared"], 2),
        "speedup_over_num_return_sequences": round(median["num_return_sequences"] / median["shared"], 2),
        "seconds": {name: round(value, 3) for name, value in median.items()},
        "peak_mb": {name: None if value is None else round(value) for name, value in peaks.items()},
    }  # fmt: skip


@torch.no_grad()
def _generate(policy: Policy, prompt: Prompt, copies: int, returned: int, tokens: int, is_sampled: bool) -> list[list[int]]:
    """transformers' `generate` on so many copies of the prompt and its picture."""
    ids = torch.from_numpy(prompt.ids)[None].expand(copies, -1).to(policy.device)
    media = {name: value.to(policy.device) for name, value in stack_media([prompt] * copies).items()}
    draws: dict[str, Any] = {"do_sample": True, "top_k": 0, "temperature": 1.0} if is_sampled else {"do_sample": False}
    out = policy.base.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=(ids == policy.layout.image_token_id).int(),
        max_new_tokens=tokens, min_new_tokens=tokens, num_return_sequences=returned, use_cache=True,
        suppress_tokens=policy.banned_ids.tolist(), pad_token_id=2, **draws, **media,
    )  # fmt: skip
    return out[:, ids.shape[1] :].tolist()
