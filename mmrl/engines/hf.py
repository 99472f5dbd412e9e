"""Sampling with the policy's own transformers model: pictures encoded and prompts read once per task, their keys and values shared by the
group, one batched decode loop that finished rows leave. On a CPU, completions of a prompt are one row until their tokens differ.

The sampled distribution is exactly the trainer's (same positions, temperature and ruled-out tokens), so `sampling_logps` equal the
trainer's log-probabilities up to rounding. Each row draws from its own keyed stream: what else is in the batch cannot change it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import nn

from mmrl.engines.draw import draw_tokens
from mmrl.errors import EngineError
from mmrl.models.decode import SharedDecoder
from mmrl.models.decode_plain import PlainDecoder
from mmrl.models.policy import Policy
from mmrl.protocols import Sampling
from mmrl.seeding import stream
from mmrl.types import Completion, Prompt

_log = logging.getLogger(__name__)
MERGE_ON = ("cpu",)
"""Devices on which completions with the same tokens so far are one row. On others the number of rows says little about the time, and every
change of it moves them all."""


@dataclass
class HFEngine:
    """Samples in this process; needs no second copy of the weights."""

    max_rows: int = 512
    """Completions decoded at once; changes memory and speed only. A prompt with more of them is read again for each such batch."""
    compact_below: float = 0.75
    """Finished rows leave the batch once the share of unfinished ones is below this, or earlier when rows are moved anyway."""
    prefill_tokens: int = 8192
    """Prompt tokens read by one forward; a longer prompt is read alone. Changes memory and speed only."""
    _policy: Policy | None = field(default=None, init=False, repr=False)
    _tokenizer: Any = field(default=None, init=False, repr=False)
    _version: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("max_rows", "prefill_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if not 0 <= self.compact_below <= 1:
            raise ValueError(f"compact_below must be in [0, 1]; got {self.compact_below}")

    def attach(self, processor: Any) -> None:
        """Gives the tokenizer that completions are decoded with."""
        self._tokenizer = processor.tokenizer

    def load_policy(self, policy: nn.Module, version: int) -> None:
        """Samples from `policy` from now on. The weights are shared, not copied."""
        assert isinstance(policy, Policy)
        if policy is not self._policy and not policy.can_share:
            _log.warning("hf engine: each completion keeps its own copy of the prompt, because this attention takes no streams; use sdpa")
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
                    decode = _Decode(self._policy, self._tokenizer, batch, draws, sampling)
                    rows = decode.run(self._decoder(batch, len(draws), sampling), self.compact_below, self._version)
                    for place, n in enumerate(some):
                        out[n] += rows[place * len(draws) : (place + 1) * len(draws)]
        finally:
            self._policy.train(was_training)
        return out

    def _decoder(self, prompts: Sequence[Prompt], num_generations: int, sampling: Sampling) -> SharedDecoder | PlainDecoder:
        assert self._policy is not None
        if not self._policy.can_share:
            return PlainDecoder(self._policy, prompts, self._tokenizer.pad_token_id)
        rows = len(prompts) * num_generations
        return SharedDecoder(self._policy, prompts, rows, sampling.max_completion_length, self.prefill_tokens)


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
    """One batch from the first token to the last finished completion. Completion c is draw c % G of prompt c // G, counted from
    `draws.start`."""

    def __init__(self, policy: Policy, tokenizer: Any, prompts: Sequence[Prompt], draws: range, sampling: Sampling) -> None:
        self.policy, self.tokenizer, self.sampling, self.G = policy, tokenizer, sampling, len(draws)
        self.end_ids = _end_ids(policy, tokenizer)
        count, length = len(prompts) * self.G, sampling.max_completion_length
        self.stop_reach = max((len(stop.encode()) for stop in sampling.stop), default=0)  # a token is a byte or more of its text
        uniform = np.zeros((count, length))
        if sampling.temperature > 0:
            for n, (prompt, draw) in enumerate(product(prompts, draws)):
                uniform[n] = stream(sampling.seed, "sampling", sampling.step, prompt.task.id, draw).random(length)
        self.draws = torch.from_numpy(uniform).to(policy.device)
        self.logps = torch.zeros(count, length, device=policy.device)
        self.tokens = np.zeros((count, length), np.int64)
        self.done_at = np.zeros(count, np.int64)
        self.stopped = np.zeros(count, bool)

    def run(self, decoder: SharedDecoder | PlainDecoder, compact_below: float, version: int) -> list[Completion]:
        device = self.draws.device
        alive = (decoder.order[:, None] * self.G + np.arange(self.G)).ravel()  # completions that run
        row = np.repeat(np.arange(len(decoder.order)), self.G)  # each one's row of the batch, ascending
        logits = decoder.first()
        for step in range(self.sampling.max_completion_length):
            rows, these = torch.from_numpy(np.stack([row, alive])).to(device)
            ids, logps = draw_tokens(logits, rows, self.draws[these, step], self.sampling, self.policy.banned_ids)
            self.logps[these, step] = logps
            tokens = ids.cpu().numpy()  # the one wait for the device in a step
            running = self._record(step, alive, tokens)
            if not running.any() or step + 1 == self.sampling.max_completion_length:
                break
            alive, row, parents, fed = self._part(alive[running], row[running], tokens[running])
            left = np.unique(parents)
            if len(parents) > len(left) or len(left) < compact_below * len(logits):
                decoder.select(parents)
            else:  # finished rows stay for now, whatever they are fed
                stay = np.zeros(len(logits), np.int64)
                stay[parents] = fed
                row, fed = parents[row], stay
            logits = decoder.next(torch.from_numpy(fed).to(device))
        return self._completions(version)

    def _part(self, alive: np.ndarray, row: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, ...]:
        """Completions in their next order, the row of each, and of every such row the row that it comes from and the token it is fed."""
        is_first = np.ones(len(alive), bool)
        if self.draws.device.type in MERGE_ON:
            order = np.lexsort((tokens, row))
            alive, row, tokens = alive[order], row[order], tokens[order]
            is_first[1:] = (np.diff(row) > 0) | (np.diff(tokens) > 0)
        return alive, np.cumsum(is_first) - 1, row[is_first], tokens[is_first]

    def _record(self, step: int, alive: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Notes a token of every running completion; says which run on."""
        if (tokens < 0).any():
            raise EngineError("the policy's logits are not finite, so nothing can be sampled: its weights hold NaN or have grown too large")
        self.tokens[alive, step] = tokens
        self.done_at[alive] = step + 1
        ended = np.isin(tokens, self.end_ids)
        if self.sampling.stop:
            tails = self.tokenizer.batch_decode(self.tokens[alive, max(0, step + 1 - self.stop_reach) : step + 1])
            ended |= np.array([any(stop in tail for stop in self.sampling.stop) for tail in tails])
        self.stopped[alive] = ended
        return ~ended

    def _completions(self, version: int) -> list[Completion]:
        ids = [tokens[:length].copy() for tokens, length in zip(self.tokens, self.done_at, strict=True)]
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        logps = self.logps.cpu().numpy()
        return [
            Completion(
                ids=ids[row],
                text=texts[row],
                sampling_logps=logps[row, : len(ids[row])].copy(),
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
