"""The ways that are compared: how trainers of today get the log-probabilities of one prompt's completions, and how mmrl does.

Each arm is `(policy, rows, coefficients, temperature) -> log-probabilities`, and adds the gradient of sum(coefficients * log-probabilities)
where gradients are enabled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mmrl.head import chunked_logps_entropy
from mmrl.models.forward import GroupForward
from mmrl.models.policy import Policy
from mmrl.models.spans import spans_of
from mmrl.models.stream import Row, pack_prefixes, pack_segments, stack_media
from mmrl.models.windows import own_attention, take_windows
from mmrl.ops import token_logps

MAX_RESIDENT = {"cpu": 20_500, "cuda": 5_500}
"""Tokens of a micro-batch of the repeating arms: what fits beside a small model, and beside a 7B and its gradients in 80 GB."""
Arm = Callable[[Policy, Sequence[Row], Sequence[Tensor]], Tensor]


def naive(policy: Policy, rows: Sequence[Row], coefficients: Sequence[Tensor]) -> Tensor:
    """Prompt and picture repeated for every completion, transformers' own forward, logits of the completion in full: what synchronous
    trainers do for pictures and video."""
    tower = policy.base.model.visual
    own_attention(tower)
    try:
        return _naive(policy, rows, coefficients)
    finally:
        take_windows(tower)


def _naive(policy: Policy, rows: Sequence[Row], coefficients: Sequence[Tensor]) -> Tensor:
    prompt = rows[0][0]
    out: list[Tensor] = []
    for some in _micro_batches(rows, policy.device.type):
        ids = _padded(rows, some, policy)
        media = {name: value.to(policy.device) for name, value in stack_media([prompt] * len(some)).items()}
        longest = ids.shape[1] - len(prompt.ids)
        logits = policy.base(
            input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=(ids == policy.layout.image_token_id).int(),
            logits_to_keep=longest + 1, use_cache=False, **media,
        ).logits[:, :-1]  # fmt: skip
        logits = logits.index_fill(-1, policy.banned_ids, -torch.inf)
        logps = token_logps(logits, ids[:, len(prompt.ids) :], temperature=1.0)
        out += _finish([row[: len(rows[n][1])] for n, row in zip(some, logps, strict=True)], [coefficients[n] for n in some])
    return torch.cat(out)


def vision_once(policy: Policy, rows: Sequence[Row], coefficients: Sequence[Tensor]) -> Tensor:
    """The picture encoded once, its embeddings repeated with the prompt; head in chunks."""
    prompt = rows[0][0]
    ids = torch.from_numpy(prompt.ids)[None].to(policy.device)
    embeds, _ = policy.embed(ids, [prompt])
    leaf = embeds.detach().requires_grad_(embeds.requires_grad)
    out: list[Tensor] = []
    for some in _micro_batches(rows, policy.device.type):
        whole = _padded(rows, some, policy)
        place = pack_prefixes([prompt], policy.layout, policy.device)
        positions = torch.cat(
            [place.positions, place.last_positions[0] + torch.arange(whole.shape[1] - ids.shape[1] + 1).expand(3, 1, -1).to(policy.device)],
            2,
        )
        after = policy.base.get_input_embeddings()(whole[:, ids.shape[1] :])
        hidden = policy.hidden(torch.cat([leaf.expand(len(some), -1, -1), after], 1), positions.expand(3, len(some), -1), None)
        kept = [h[ids.shape[1] - 1 :][: len(rows[n][1])] for n, h in zip(some, hidden.last_hidden_state, strict=True)]
        targets = torch.cat([whole[i, ids.shape[1] :][: len(rows[n][1])] for i, n in enumerate(some)])
        logps, _ = chunked_logps_entropy(
            torch.cat(kept), policy.base.lm_head.weight, targets, temperature=1.0, banned_ids=policy.banned_ids
        )
        out += _finish(list(logps.split([len(rows[n][1]) for n in some])), [coefficients[n] for n in some])
    if leaf.grad is not None:
        embeds.backward(leaf.grad)
    return torch.cat(out)


class _Concatenated:
    """PrefixGrouper's attention (arXiv:2506.05433): every completion attends to a copy of [prefix; itself]."""

    def __init__(self, prefix: int, lengths: Sequence[int]) -> None:
        self.prefix, self.spans = prefix, spans_of(lengths, prefix)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        repeat = q.shape[1] // k.shape[1]
        heads = lambda x, n: x.transpose(0, 1)[None].repeat_interleave(n, 1)  # noqa: E731
        attention = torch.nn.functional.scaled_dot_product_attention
        own = slice(0, self.prefix)
        outs = [attention(heads(q[own], 1), heads(k[own], repeat), heads(v[own], repeat), is_causal=True, scale=scale)]
        for begin, end in self.spans:
            keys, values = (heads(torch.cat([x[own], x[begin:end]]), repeat) for x in (k, v))
            mask = torch.ones(end - begin, self.prefix + end - begin, dtype=torch.bool, device=q.device).tril(self.prefix)
            outs.append(attention(heads(q[begin:end], 1), keys, values, attn_mask=mask, scale=scale))
        return torch.cat(outs, 2)[0].transpose(0, 1)


def concatenated(policy: Policy, rows: Sequence[Row], coefficients: Sequence[Tensor]) -> Tensor:
    """The strongest public shared-prefix form: one stream, the prefix's keys and values copied beside those of each completion."""
    prefixes = pack_prefixes([rows[0][0]], policy.layout, policy.device)
    segments = pack_segments(prefixes, [(0, ids) for _, ids in rows])
    embeds, extra = policy.embed(torch.cat([prefixes.ids, segments.ids], 1), prefixes.prompts)
    positions = torch.cat([prefixes.positions, segments.positions], 2)
    context = _Concatenated(prefixes.lengths[0], segments.lengths)
    hidden = policy.hidden(embeds, positions, None, stream=context, **extra).last_hidden_state[0, prefixes.lengths[0] :]
    logps, _ = chunked_logps_entropy(hidden, policy.base.lm_head.weight, segments.targets, temperature=1.0, banned_ids=policy.banned_ids)
    return torch.cat(_finish(list(logps.split(segments.lengths)), list(coefficients)))


def shared(max_tokens: int) -> Arm:
    """mmrl's two streams, parts of `max_tokens`."""

    def arm(policy: Policy, rows: Sequence[Row], coefficients: Sequence[Tensor]) -> Tensor:
        out: list[Tensor | None] = [None] * len(rows)
        for part in GroupForward(1.0, 2, max_tokens=max_tokens)(policy, rows):
            values = list(part.logps.split([len(rows[n][1]) for n in part.rows]))
            for n, row in zip(part.rows, _finish(values, [coefficients[n] for n in part.rows]), strict=True):
                out[n] = row
        return torch.cat([row for row in out if row is not None])

    return arm


def _finish(logps: list[Tensor], coefficients: Sequence[Tensor]) -> list[Tensor]:
    if torch.is_grad_enabled():
        (torch.cat(logps) * torch.cat(list(coefficients))).sum().backward()
    return [row.detach() for row in logps]


def _micro_batches(rows: Sequence[Row], device: str) -> list[range]:
    longest = max(len(prompt.ids) + len(ids) for prompt, ids in rows)
    size = max(1, MAX_RESIDENT[device] // longest)
    return [range(at, min(at + size, len(rows))) for at in range(0, len(rows), size)]


def _padded(rows: Sequence[Row], some: Sequence[int], policy: Policy) -> Tensor:
    lines = [torch.cat([torch.from_numpy(rows[n][0].ids), torch.from_numpy(rows[n][1])]) for n in some]
    return torch.nn.utils.rnn.pad_sequence(lines, batch_first=True, padding_value=2).to(policy.device)
