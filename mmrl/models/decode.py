"""Decoding of many completions at once, token by token, with each prompt's keys and values stored once.

Prompts are read without padding, all but their last tokens, by the group forward's own prefix pass. From then on a running completion is
one row. At every step each row's query sees two sets of keys: its prompt's, shared by all rows of the group (one product of G * H / Hk
query rows against `[Hk, P, d]`, as in Hydragen, arXiv:2402.05099), and its own, which grow by one in a buffer that is allocated once. The
two parts are merged by their log-sum-exps. Finished rows leave, and with the last row of a group its prompt.

For CUDA graphs: between two `select`s a step reads and writes fixed buffers and never waits for the device. Where a row's keys go is read
from the tensor `slot`, and the own keys that are seen are rounded up to `own_width_step` under a mask, so shapes change once in that many
steps. What remains is the capture itself, which has not been tried: `next` with the ids copied into a fixed input, one graph for each
width, and after `select` new graphs, or row counts padded up to one of a few sizes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmrl.models.policy import KeysValues, Policy
from mmrl.models.spans import spans_of
from mmrl.models.stream import pack_prefixes
from mmrl.types import Prompt


class SharedDecoder:
    """Rows of token histories, at first the prompts themselves. `first`, then `next` for every further token; before it, `select` lets
    rows part or leave. Needs a policy that takes streams, in eval mode, without gradient."""

    def __init__(self, policy: Policy, prompts: Sequence[Prompt], max_rows: int, max_tokens: int, stream_tokens: int) -> None:
        """`max_rows`, `max_tokens`: most rows and longest completion, for the size of the buffers. `stream_tokens`: prompt tokens read by
        one forward; a longer prompt is read alone."""
        self.policy = policy
        self.order = np.array(sorted(range(len(prompts)), key=lambda n: len(prompts[n].ids)), np.int64)
        """Index in `prompts` of every row; the rows of a prompt lie together."""
        blocks: list[PromptBlock] = []
        last_ids, last_positions = [], []
        for some in _streams([prompts[n] for n in self.order], stream_tokens):
            prefixes = pack_prefixes(some, policy.layout, policy.device)
            blocks += _blocks(prefixes.lengths, policy.read_prefixes(prefixes), first=len(last_ids))
            last_ids += [prompt.ids[-1] for prompt in some]
            last_positions += prefixes.last_positions
        self.context = DecodeContext(blocks, max_rows, max_tokens)
        self._last_ids = torch.tensor(last_ids, device=policy.device)
        self.positions = torch.tensor(last_positions, device=policy.device)
        """int64 [rows] rotary position, the same on all three axes, of the token that a row is fed next."""

    def first(self) -> Float[Tensor, "p v"]:
        """Logits of the first token, one row a prompt, in `order`."""
        return self.next(self._last_ids)

    def next(self, ids: Int[Tensor, " n"]) -> Float[Tensor, "n v"]:
        """Logits after one more token of every row."""
        base = self.policy.base
        self.context.begin_step()
        embeds = base.get_input_embeddings()(ids)[None]
        hidden = self.policy.hidden(embeds, self.positions.expand(3, 1, -1), None, stream=self.context).last_hidden_state[0]
        self.positions += 1
        return base.lm_head(hidden)

    def select(self, parents: Int[np.ndarray, " n"]) -> None:
        """From now on row i is what row `parents[i]` was; ascending, with repeats where a row parts, without those that leave."""
        on_device = torch.from_numpy(parents).to(self.positions.device)
        self.order, self.positions = self.order[parents], self.positions[on_device]
        self.context.select(parents, on_device)


def _streams(prompts: Sequence[Prompt], max_tokens: int) -> Iterator[list[Prompt]]:
    batch: list[Prompt] = []
    tokens = 0
    for prompt in prompts:
        if batch and tokens + len(prompt.ids) - 1 > max_tokens:
            yield batch
            batch, tokens = [], 0
        batch.append(prompt)
        tokens += len(prompt.ids) - 1
    if batch:
        yield batch


class DecodeContext:
    """The stream context of one token a row: packed rows `[N, heads, d]` of a step come in by layer, and leave attended."""

    def __init__(self, blocks: list[PromptBlock], max_rows: int, max_tokens: int, own_width_step: int | None = None) -> None:
        keys = blocks[0].keys
        self.blocks = blocks
        device = keys[0].device
        self.own_width_step = own_width_step or (1 if device.type == "cpu" else 64)
        """Own keys are read in multiples of this; 1 = as many as there are, without a mask."""
        width = -(-max_tokens // self.own_width_step) * self.own_width_step
        shape = (max_rows, keys[0].shape[1], width, keys[0].shape[3])
        make = torch.empty if self.own_width_step == 1 else torch.zeros  # what is masked must be finite
        self.own_keys = [make(shape, dtype=x.dtype, device=device) for x in keys]
        self.own_values = [make(shape, dtype=x.dtype, device=device) for x in keys]
        """Per layer [N_max, Hk, T_max, d]; the first of the N_max rows are those that run."""
        self.filled = 0
        """Tokens of every row that are in the buffers: this step's too, once it has begun."""
        self.slot = torch.full((1,), -1, device=device)
        """int64: where this step's keys go, for the device to read."""
        self._places = torch.arange(width, device=device)
        self._own_bias: Tensor | None = None

    def begin_step(self) -> None:
        self.filled += 1
        self.slot += 1
        self._width = -(-self.filled // self.own_width_step) * self.own_width_step
        if self.own_width_step > 1:
            bias = torch.zeros(self._width, device=self.slot.device)
            self._own_bias = bias.masked_fill_(self._places[: self._width] > self.slot, -math.inf).view(1, 1, 1, -1)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        N, H, d = q.shape
        keys, values = self.own_keys[layer][:N], self.own_values[layer][:N]
        keys.index_copy_(2, self.slot, k[:, :, None])
        values.index_copy_(2, self.slot, v[:, :, None])
        seen = slice(0, self._width)
        out, lse = attention(q.reshape(N, k.shape[1], -1, d), keys[:, :, seen], values[:, :, seen], self._own_bias, scale)
        out, lse = out.reshape(N, H, d), lse.reshape(N, H, 1)
        parts = [block.attend(layer, q, scale) for block in self.blocks]
        shared, shared_lse = parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True))
        return shared.lerp(out, (lse - shared_lse).sigmoid_().to(out.dtype))

    def select(self, parents: Int[np.ndarray, " n"], on_device: Int[Tensor, " n"]) -> None:
        """Row i becomes what row `parents[i]` was (ascending); prompts without rows leave. `on_device`: the same rows."""
        for buffer in (*self.own_keys, *self.own_values):
            buffer[: len(parents), :, : self.filled] = buffer[:, :, : self.filled].index_select(0, on_device)
        ends = np.cumsum([block.num_rows for block in self.blocks])
        parts = np.split(parents, np.searchsorted(parents, ends[:-1]))
        self.blocks = [block for block, part in zip(self.blocks, parts, strict=True) if len(part)]
        first = 0
        for block, part in zip(self.blocks, [part for part in parts if len(part)], strict=True):
            first = block.select(first, part)


def _width_for(length: int) -> int:
    """Up by an eighth at most, so that prompts of about one length share a block."""
    step = max(1, 2 ** (length.bit_length() - 4))
    return -(-length // step) * step


def _blocks(lengths: Sequence[int], keys_values: KeysValues, first: int) -> list[PromptBlock]:
    """Blocks of packed prefixes of ascending `lengths`, with one row a prompt from row `first` on."""
    spans = [(begin, end - begin) for begin, end in spans_of(lengths)]
    blocks: list[PromptBlock] = []
    device = keys_values[0][0].device
    for _, members in groupby(spans, key=lambda span: _width_for(span[1])):
        some = list(members)
        blocks.append(PromptBlock(some, first, device))
        first += len(some)
    while keys_values:  # the packed ones go layer by layer, so that none are held twice for long
        keys, values = keys_values.pop(0)
        for block in blocks:
            block.take(keys, values)
    return blocks


class PromptBlock:
    """n prompts of about one length, with the rows that run under them. The only holder of these prompts' keys and values."""

    def __init__(self, spans: Sequence[tuple[int, int]], first: int, device: torch.device) -> None:
        """`spans`: (begin, length) of each prompt among packed prefixes. One row a prompt, from row `first` of the batch on."""
        self.width = max(length for _, length in spans)
        begins, lengths = (torch.tensor(numbers, device=device)[:, None] for numbers in zip(*spans, strict=True))
        place = torch.arange(self.width, device=device)
        real = place < lengths
        self._index = torch.where(real, begins + place, begins).flatten()
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        """Per layer [n, Hk, P, d], shorter prompts filled up."""
        self.bias = None if bool(real.all()) else torch.zeros(real.shape, device=device).masked_fill_(~real, -math.inf)[:, None, None]
        """[n, 1, 1, P], -inf where a prompt is filled up; None = nowhere."""
        self.lay_out(first, np.ones(len(spans), np.int64))

    def take(self, keys: Float[Tensor, "s hk d"], values: Float[Tensor, "s hk d"]) -> None:
        """One more layer, of all prefixes."""
        for packed, kept in ((keys, self.keys), (values, self.values)):
            some = packed.index_select(0, self._index).view(len(self.counts), self.width, *packed.shape[1:])
            kept.append(some.transpose(1, 2).contiguous())

    def lay_out(self, first: int, counts: Int[np.ndarray, " n"]) -> int:
        """Says that the block's rows are `counts` of each prompt, from row `first` of the batch on; gives the row after the last."""
        self.counts, self.num_rows = counts, int(counts.sum())
        self.first, self.most = first, int(counts.max())
        self.slots: Tensor | None = None
        """Rows of the rectangle [n, most], any row where a prompt has fewer; None = they are the block's rows as they lie."""
        self.places: Tensor | None = None
        """Where in the rectangle each row is."""
        if (counts < self.most).any():
            starts, nth = first + np.cumsum(counts) - counts, np.arange(self.most)
            real = nth < counts[:, None]
            device = self._index.device
            self.slots = torch.from_numpy(np.where(real, starts[:, None] + nth, first).ravel()).to(device)
            self.places = torch.from_numpy(np.flatnonzero(real)).to(device)
        return first + self.num_rows

    def select(self, first: int, parents: Int[np.ndarray, " n"]) -> int:
        """The block's rows become what rows `parents` of the batch were, from row `first` on; prompts without rows leave."""
        owners = np.searchsorted(self.first + np.cumsum(self.counts), parents, side="right")
        counts = np.bincount(owners, minlength=len(self.counts))
        if not counts.all():
            left = torch.from_numpy(np.flatnonzero(counts)).to(self.keys[0].device)
            for tensors in (self.keys, self.values):
                for layer, tensor in enumerate(tensors):
                    tensors[layer] = tensor.index_select(0, left)
            self.bias = None if self.bias is None else self.bias.index_select(0, left)
        return self.lay_out(first, counts[counts > 0])

    def attend(self, layer: int, q: Float[Tensor, "t h d"], scale: float) -> tuple[Float[Tensor, "r h d"], Float[Tensor, "r h 1"]]:
        """Attention of the block's rows to their prompts, and its log-sum-exp. `q`: all rows of the batch."""
        keys, values = self.keys[layer], self.values[layer]
        n, Hk, P, d = keys.shape
        some = q[self.first : self.first + self.num_rows] if self.slots is None else q.index_select(0, self.slots)
        if P == 0:
            return q.new_zeros(self.num_rows, q.shape[1], d), q.new_full((self.num_rows, q.shape[1], 1), -math.inf)
        folded = some.reshape(n, self.most, Hk, -1, d).transpose(1, 2).flatten(2, 3)
        out, lse = attention(folded, keys, values, self.bias, scale)
        out, lse = (x.unflatten(2, (self.most, -1)).transpose(1, 2).flatten(2, 3).flatten(0, 1) for x in (out, lse[..., None]))
        return (out, lse) if self.places is None else (out.index_select(0, self.places), lse.index_select(0, self.places))


def attention(
    q: Float[Tensor, "n h m d"], k: Float[Tensor, "n h p d"], v: Float[Tensor, "n h p d"], bias: Tensor | None, scale: float
) -> tuple[Float[Tensor, "n h m d"], Float[Tensor, "n h m"]]:
    """Softmax attention and the log-sum-exp of its scores in nats, float32 (float64 for float64). `bias` float32 [n or 1, 1, 1, p] is
    added to the scores."""
    if q.device.type == "cpu":
        bias = None if bias is None else bias.to(q.dtype)
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, False, attn_mask=bias, scale=scale)
    return plain_attention(q, k, v, bias, scale)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """`attention` by its definition, on any device: scores in full."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    scores = (q.to(dtype) @ k.to(dtype).mT).mul_(scale)
    if bias is not None:
        scores += bias
    lse = scores.logsumexp(-1, keepdim=True)
    return scores.sub_(lse).exp_().to(v.dtype) @ v, lse[..., 0]
