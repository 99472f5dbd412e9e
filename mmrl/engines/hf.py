"""Sampling with the policy's own transformers model: pictures encoded and prompts prefilled once per task, the cache expanded to the group,
one batched decode loop that finished rows leave.

The sampled distribution is exactly the trainer's (same positions, temperature and ruled-out tokens), so `sampling_logps` equal the
trainer's log-probabilities up to rounding. Each row draws from its own keyed stream: what else is in the batch cannot change it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from mmrl.errors import EngineError
from mmrl.models.policy import Policy
from mmrl.models.processor import prompt_positions
from mmrl.protocols import Sampling
from mmrl.seeding import stream
from mmrl.types import Completion, Prompt


@dataclass
class HFEngine:
    """Samples in this process; needs no second copy of the weights."""

    max_rows: int = 512
    """Completions decoded at once; changes memory and speed only. A prompt with more of them is read again for each such batch."""
    compact_below: float = 0.75
    """Finished rows leave the batch once the share of unfinished ones is below this."""
    _policy: Policy | None = field(default=None, init=False, repr=False)
    _tokenizer: Any = field(default=None, init=False, repr=False)
    _version: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.max_rows < 1:
            raise ValueError(f"max_rows must be at least 1; got {self.max_rows}")
        if not 0 <= self.compact_below <= 1:
            raise ValueError(f"compact_below must be in [0, 1]; got {self.compact_below}")

    def attach(self, processor: Any) -> None:
        """Gives the tokenizer that completions are decoded with."""
        self._tokenizer = processor.tokenizer

    def load_policy(self, policy: nn.Module, version: int) -> None:
        """Samples from `policy` from now on. The weights are shared, not copied."""
        assert isinstance(policy, Policy)
        self._policy, self._version = policy, version

    def generate(self, prompts: Sequence[Prompt], num_generations: int, sampling: Sampling) -> list[list[Completion]]:
        """`num_generations` completions for each prompt, in prompt order. Draw j of a prompt depends on (seed, step, task id, j) alone.

        Raises ValueError for settings that no distribution has, EngineError before `attach` and `load_policy`, for a model without an
        end token, and where the policy's logits are not finite.
        """
        if self._policy is None or self._tokenizer is None:
            raise EngineError("hf engine: generate was called before attach and load_policy")
        _check(num_generations, sampling)
        was_training = self._policy.training
        self._policy.eval()
        out: list[list[Completion]] = [[] for _ in prompts]
        try:
            with torch.no_grad():
                for some, draws in _batches(len(prompts), num_generations, self.max_rows):
                    batch = [prompts[n] for n in some]
                    decode = _Decode(self._policy, self._tokenizer, batch, draws, sampling, self.compact_below)
                    rows = decode.run(self._version)
                    for place, n in enumerate(some):
                        out[n] += rows[place * len(draws) : (place + 1) * len(draws)]
        finally:
            self._policy.train(was_training)
        return out


def _check(num_generations: int, sampling: Sampling) -> None:
    if num_generations < 1 or sampling.max_completion_length < 1:
        raise ValueError(f"need 1 completion of 1 token or more; got {num_generations} of {sampling.max_completion_length}")
    if not 0 <= sampling.temperature < float("inf"):
        raise ValueError(f"temperature must be >= 0 and finite; got {sampling.temperature}")
    if not 0 < sampling.top_p <= 1 or sampling.top_k < 0:
        raise ValueError(f"need 0 < top_p <= 1 and top_k >= 0; got {sampling.top_p} and {sampling.top_k}")
    if "" in sampling.stop:
        raise ValueError("stop holds an empty string, which would end every completion at once; leave it out")


def _batches(num_prompts: int, num_generations: int, max_rows: int) -> Iterator[tuple[range, range]]:
    """(prompts, draws of each) of every batch: as many whole groups as fit, or pieces of one group that is too large."""
    prompts, draws = max(1, max_rows // num_generations), min(num_generations, max_rows)
    for start in range(0, num_prompts, prompts):
        for first in range(0, num_generations, draws):
            yield range(start, min(start + prompts, num_prompts)), range(first, min(first + draws, num_generations))


class _Decode:
    """One batch from prefill to the last finished row. Row r is draw r % G of prompt r // G, counted from `draws.start`."""

    def __init__(
        self, policy: Policy, tokenizer: Any, prompts: Sequence[Prompt], draws: range, sampling: Sampling, compact_below: float
    ) -> None:
        self.policy, self.tokenizer, self.prompts, self.sampling = policy, tokenizer, prompts, sampling
        self.G, self.compact_below = len(draws), compact_below
        self.device = policy.device
        self.end_ids = _end_ids(policy, tokenizer)
        rows = len(prompts) * self.G
        length = sampling.max_completion_length
        self.stop_reach = max((len(stop.encode()) for stop in sampling.stop), default=0)  # a token is a byte or more of its text
        self.draws = np.empty((rows, length))
        for row, (prompt, draw) in enumerate(product(prompts, draws)):
            self.draws[row] = stream(sampling.seed, "sampling", sampling.step, prompt.task.id, draw).random(length)
        self.tokens = np.zeros((rows, length), np.int64)
        self.logps = np.zeros((rows, length), np.float32)
        self.done_at = np.zeros(rows, np.int64)
        self.stopped = np.zeros(rows, bool)

    def run(self, version: int) -> list[Completion]:
        logits, cache, padding, next_position = self._prefill()
        cache.batch_repeat_interleave(self.G)
        alive = np.arange(len(self.prompts) * self.G)  # rows of the batch -> rows of the result
        logits, next_position = logits.repeat_interleave(self.G, 0), next_position.repeat_interleave(self.G, 0)
        padding = None if padding is None else padding.repeat_interleave(self.G, 0)
        running = np.ones(len(alive), bool)
        for step in range(self.sampling.max_completion_length):
            ids, logps = self._sample(logits, torch.from_numpy(self.draws[alive, step]))
            running = self._record(step, alive, running, ids, logps)
            if not running.any() or step + 1 == self.sampling.max_completion_length:
                break
            if running.mean() < self.compact_below:
                keep = torch.from_numpy(np.flatnonzero(running)).to(self.device)
                cache.batch_select_indices(keep)
                next_position, ids = next_position[keep], ids[keep]
                padding = None if padding is None else padding[keep]
                alive, running = alive[running], running[running]
            if padding is not None:
                padding = torch.cat([padding, padding.new_ones(len(alive), 1)], 1)
            embeds = self.policy.base.get_input_embeddings()(ids[:, None])
            positions = (next_position + step)[None, :, None].expand(3, -1, 1)
            hidden = self.policy.hidden(embeds, positions, padding, past_key_values=cache).last_hidden_state
            logits = self.policy.base.lm_head(hidden[:, -1])
        return self._completions(version)

    def _prefill(self) -> tuple[Tensor, DynamicCache, Tensor | None, Tensor]:
        """Logits after each prompt [prompts, vocab], the cache, the padding mask (None: no padding), each prompt's next position."""
        lengths = [len(p.ids) for p in self.prompts]
        width = max(lengths)
        ids = np.full((len(lengths), width), self.tokenizer.pad_token_id, np.int64)
        positions = np.zeros((3, len(lengths), width), np.int64)
        padding = np.zeros((len(lengths), width), np.int64)
        for n, prompt in enumerate(self.prompts):
            left = width - lengths[n]
            ids[n, left:], padding[n, left:] = prompt.ids, 1
            positions[:, n, left:] = prompt_positions(prompt, self.policy.layout)
        embeds, extra = self.policy.embed(torch.from_numpy(ids).to(self.device), self.prompts)
        mask = None if min(lengths) == width else torch.from_numpy(padding).to(self.device)
        cache = DynamicCache(config=self.policy.base.config.get_text_config())
        out = self.policy.hidden(embeds, torch.from_numpy(positions).to(self.device), mask, past_key_values=cache, **extra)
        next_position = torch.from_numpy(positions.max((0, 2)) + 1).to(self.device)
        return self.policy.base.lm_head(out.last_hidden_state[:, -1]), cache, mask, next_position

    def _sample(self, logits: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """One token per row by inverting the cumulative distribution at `draws` float64 [rows] in [0, 1); greedy at temperature 0."""
        logits = logits.float()
        logits[:, self.policy.banned_ids] = float("-inf")
        if not logits.amax(-1).isfinite().all():
            raise EngineError("the policy's logits are not finite, so nothing can be sampled: its weights hold NaN or have grown too large")
        if self.sampling.temperature == 0:
            logps = logits.log_softmax(-1)
            ids = logps.argmax(-1)
            return ids, logps.gather(-1, ids[:, None])[:, 0]
        logps = _cut(logits / self.sampling.temperature, self.sampling.top_p, self.sampling.top_k).log_softmax(-1)
        heap = logps.double().exp().cumsum(-1)
        total = heap[:, -1]
        target = torch.minimum(draws.to(heap.device) * total, torch.nextafter(total, torch.zeros_like(total)))  # never past the last token
        ids = torch.searchsorted(heap, target[:, None], right=True)[:, 0]
        return ids, logps.gather(-1, ids[:, None])[:, 0]

    def _record(self, step: int, alive: np.ndarray, running: np.ndarray, ids: Tensor, logps: Tensor) -> np.ndarray:
        rows = alive[running]
        self.tokens[rows, step] = ids.cpu().numpy()[running]
        self.logps[rows, step] = logps.cpu().numpy()[running]
        self.done_at[rows] = step + 1
        ended = np.isin(self.tokens[rows, step], self.end_ids)
        if self.sampling.stop:
            tails = self.tokenizer.batch_decode(self.tokens[rows, max(0, step + 1 - self.stop_reach) : step + 1])
            ended |= np.array([any(stop in tail for stop in self.sampling.stop) for tail in tails])
        self.stopped[rows] = ended
        still = running.copy()
        still[running] = ~ended
        return still

    def _completions(self, version: int) -> list[Completion]:
        ids = [tokens[:length].copy() for tokens, length in zip(self.tokens, self.done_at, strict=True)]
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [
            Completion(
                ids=ids[row],
                text=texts[row],
                sampling_logps=self.logps[row, : len(ids[row])].copy(),
                finish="stop" if self.stopped[row] else "length",
                policy_version=version,
            )
            for row in range(len(ids))
        ]


def _end_ids(policy: Policy, tokenizer: Any) -> np.ndarray:
    """Token ids that end a turn, from the model's generation settings and its tokenizer."""
    ends = policy.base.generation_config.eos_token_id
    ends = [ends] if isinstance(ends, int) else list(ends or ())
    if tokenizer.eos_token_id is not None:
        ends.append(tokenizer.eos_token_id)
    if not ends:
        raise EngineError("the model's generation_config and tokenizer name no end token (eos_token_id); set one in generation_config.json")
    return np.unique(ends)


def _cut(logits: Tensor, top_p: float, top_k: int) -> Tensor:
    """Rules out all but the `top_k` likeliest tokens (0 = all) and then all outside the smallest set with share `top_p`."""
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], float("-inf"))
    if top_p < 1:
        ordered, order = logits.sort(-1, descending=True)
        probs = ordered.softmax(-1)
        outside = probs.cumsum(-1) - probs >= top_p
        logits = logits.masked_fill(outside.scatter(-1, order, outside), float("-inf"))
    return logits
