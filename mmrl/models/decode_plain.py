"""Decoding by transformers' own cache, for policies whose attention takes no streams: prompts left-padded and read once, the cache repeated
for each row. Same steps as `mmrl.models.decode`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from mmrl.models.policy import Policy
from mmrl.models.processor import prompt_positions
from mmrl.types import Prompt


class PlainDecoder:
    """Rows of token histories, at first the prompts themselves. `first`, then `next` for every further token; before it, `select` lets
    rows part or leave. The policy is in eval mode, without gradient."""

    def __init__(self, policy: Policy, prompts: Sequence[Prompt], pad_id: int) -> None:
        self.policy, self.prompts, self.pad_id = policy, prompts, pad_id
        self.order = np.arange(len(prompts))
        """Index in `prompts` of every row."""
        self._cache = DynamicCache(config=policy.base.config.get_text_config())
        self._padding: Tensor | None = None
        """int64 [rows, tokens so far], 0 = padding; None = there is none."""

    def first(self) -> Float[Tensor, "p v"]:
        """Logits of the first token, one row a prompt, in `order`."""
        lengths = [len(p.ids) for p in self.prompts]
        width = max(lengths)
        ids = np.full((len(lengths), width), self.pad_id, np.int64)
        positions = np.zeros((3, len(lengths), width), np.int64)
        padding = np.zeros((len(lengths), width), np.int64)
        for n, prompt in enumerate(self.prompts):
            left = width - lengths[n]
            ids[n, left:], padding[n, left:] = prompt.ids, 1
            positions[:, n, left:] = prompt_positions(prompt, self.policy.layout)
        device = self.policy.device
        self.positions = torch.from_numpy(positions.max((0, 2)) + 1).to(device)
        """int64 [rows] rotary position, the same on all three axes, of the token that a row is fed next."""
        self._padding = None if min(lengths) == width else torch.from_numpy(padding).to(device)
        embeds, extra = self.policy.embed(torch.from_numpy(ids).to(device), self.prompts)
        return self._logits(embeds, torch.from_numpy(positions).to(device), **extra)

    def _logits(self, embeds: Tensor, positions: Tensor, **extra: Tensor) -> Tensor:
        out = self.policy.hidden(embeds, positions, self._padding, past_key_values=self._cache, **extra)
        return self.policy.base.lm_head(out.last_hidden_state[:, -1])

    def next(self, ids: Int[Tensor, " n"]) -> Float[Tensor, "n v"]:
        """Logits after one more token of every row."""
        if self._padding is not None:
            self._padding = torch.cat([self._padding, self._padding.new_ones(len(ids), 1)], 1)
        logits = self._logits(self.policy.base.get_input_embeddings()(ids[:, None]), self.positions[None, :, None].expand(3, -1, 1))
        self.positions = self.positions + 1
        return logits

    def select(self, parents: Int[np.ndarray, " n"]) -> None:
        """From now on row i is what row `parents[i]` was; ascending, with repeats where a row parts, without those that leave."""
        on_device = torch.from_numpy(parents).to(self.positions.device)
        self._cache.batch_select_indices(on_device)
        self.order, self.positions = self.order[parents], self.positions[on_device]
        self._padding = None if self._padding is None else self._padding[on_device]
