"""PAPO, perception-aware policy optimization (arXiv:2507.06448): a completion should become much less likely when most of the picture is
blacked out.

Loss terms `perception` and `sampled_nll`, over a view of the prompt that the recipe defines (`views: {masked: {use: patch_mask}}`), and
the semantic-aware mask. Where paper and the authors' code differ (MikeWangWZHL/PAPO at fb63bf4), this is the code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import AttentionInterface, AutoImageProcessor, AutoModel
from transformers.vision_utils import get_vision_window_index

from data_pipelines.perturb.checks import share
from data_pipelines.perturb.masks import PatchScoreMask, check_fill
from mmrl.batch import LossInputs, TermOutput
from mmrl.losses.needs import add_needs
from mmrl.models.patchify import VisionInput
from mmrl.models.policy import Policy
from mmrl.ops import kl_k3, masked
from mmrl.types import Media

MaskedPass = Literal["cached", "live", "gradient"]
"""When the completion is scored under the masked picture: once, with the weights that the step began with; at each update, without
gradient; at each update, with gradient."""
_NEED = {"cached": "view:", "live": "view_now:", "gradient": "view_grad:"}

DEPENDENT = math.log(2)
"""Nats. A token is vision-dependent when the picture makes it at least twice as likely (ours; the paper sets no threshold)."""


@dataclass(frozen=True)
class Perception:
    """-(exp(d) - d - 1) per token, d = logps under the masked view - logps, held in [-20, 20] (arXiv:2507.06448, section 3.2, in the form
    of the authors' code): a positive weight, PAPO's gamma, raises the divergence from the masked view.

    Its value estimates KL(policy, policy under the mask) on the policy's own tokens; its gradient, with the masked pass held fixed, is that
    of the KL the other way round. No importance ratio, no clip, and no advantage: every row is forwarded. Values above `cap` > 0 are held
    there with zero gradient: 10 in the authors' code, 0.2 in its capped form. `top_p` below 1 keeps, of each completion, the tokens whose
    divergence is at or above its 1 - top_p quantile (0.2 in the authors' code); the others are 0 and stay in the denominators. Exactly 0
    for a task without pictures.
    Metrics: perception/kl, /gap (logps - masked logps), /dependent (share of tokens with a gap of log 2 or more), /capped.
    """

    view: str = "masked"
    masked_pass: MaskedPass = "cached"
    cap: float = 10.0
    top_p: float = 1.0
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        _check_pass(self.masked_pass)
        if not 0 < self.cap < math.inf:
            raise ValueError(f"cap must be > 0 and finite; got {self.cap}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], 1 meaning all tokens; got {self.top_p}")
        add_needs(self, _NEED[self.masked_pass] + self.view)

    def __call__(self, x: LossInputs) -> TermOutput:
        logps, seen = masked(x.logps, x.mask), masked(x.view_logps[self.view], x.mask)
        divergence = kl_k3(logps, seen, cap=self.cap)
        kept = x.mask if self.top_p == 1 else x.mask & _top(divergence.detach(), x.mask, self.top_p)
        gap = (logps - seen).detach()
        metrics = {
            "perception/kl": divergence.detach(),
            "perception/gap": gap,
            "perception/dependent": (gap >= DEPENDENT).float(),
            "perception/capped": (kl_k3(logps, seen).detach() > self.cap).float(),
        }
        return TermOutput(-masked(divergence, kept), metrics)


@dataclass(frozen=True)
class SampledNLL:
    """-logps per token, of the prompt trained or of a `view`: with a positive weight each half of PAPO's double entropy, its eta
    (arXiv:2507.06448, section 3.3, in the form of the authors' code, which calls it entropy).

    The expected gradient on the policy's own tokens is 0; it acts as a small pull towards the tokens sampled. Of a view that is cached, the
    default, it is a constant: logged, no gradient. Metric: perception/nll, or perception/nll_VIEW.
    """

    view: str | None = None
    masked_pass: MaskedPass = "cached"
    """Of `view`."""
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        _check_pass(self.masked_pass)
        if self.view is not None:
            add_needs(self, _NEED[self.masked_pass] + self.view)

    def __call__(self, x: LossInputs) -> TermOutput:
        nll = -masked(x.logps if self.view is None else x.view_logps[self.view], x.mask)
        return TermOutput(nll, {"perception/nll" if self.view is None else f"perception/nll_{self.view}": nll.detach()})


def _top(values: Float[Tensor, "b t"], mask: Bool[Tensor, "b t"], share: float) -> Bool[Tensor, "b t"]:
    """Whether a token's value is at or above the 1 - share quantile of its row's."""
    known = values.masked_fill(~mask, math.nan)
    return values >= known.nanquantile(1 - share, dim=-1, keepdim=True)


def _check_pass(name: str) -> None:
    if name not in get_args(MaskedPass):
        raise ValueError(f"masked_pass must be one of {', '.join(get_args(MaskedPass))}; got {name!r}")


@dataclass
class SemanticMask:
    """Fills the floor(ratio * N) patches that receive most attention with one colour (PAPO's semantic-aware masking, arXiv:2507.06448).

    Score of a patch: the attention that all patches pay it, mean over heads and `layers`. `path` names the folder of a vision transformer
    of transformers, DINOv2 in the paper: the whole picture is squeezed to the model's square, and its class and register tokens are left
    out. Without one, the policy's own vision tower looks, with the weights that the step began with. A clip has one mask, from the mean
    over its frames (ours). No randomness.
    """

    ratio: float = 0.6
    """Share of the patches that is hidden, in [0, 1]."""
    path: str | None = None
    """Folder or hub id of a vision transformer; null = the policy's own tower."""
    layers: tuple[int, ...] = ()
    """Counted from 0. () = 6, 7, 8, 9 of the model at `path`, as in the paper; of the policy's own tower the layers that see the whole
    picture where others see windows, else those from half to three quarters of its depth, as 6 to 9 are of DINOv2's 12."""
    fill: tuple[int, int, int] = (0, 0, 0)
    """RGB, 0 to 255."""
    _scores: Callable[[Media], np.ndarray] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        share("ratio", self.ratio)
        check_fill(self.fill)

    def attach(self, policy: Policy, processor: Any) -> None:
        """Gives it the tower to look with; a model at `path` is loaded now."""
        if self.path is None:
            self._scores = _Tower(policy, processor, self.layers)
        else:
            self._scores = _VisionTransformer(self.path, self.layers or (6, 7, 8, 9), policy.device)

    def __call__(self, media: Media, rng: np.random.Generator) -> Media:
        if self._scores is None:
            raise ValueError("semantic_mask needs a model to look with, and has none here; write it as a view of its own")
        return PatchScoreMask(self._scores(media), self.ratio, self.fill)(media, rng)


class _VisionTransformer:
    """A model of transformers that gives its attentions: DINOv2, ViT and their like."""

    def __init__(self, path: str, layers: tuple[int, ...], device: torch.device) -> None:
        self.model = AutoModel.from_pretrained(path, attn_implementation="eager").to(device).eval()
        self.processor = AutoImageProcessor.from_pretrained(path)
        self.layers = layers
        self.side = int(self.model.config.image_size)
        self.grid = self.side // int(self.model.config.patch_size)
        _check_layers(layers, self.model.config.num_hidden_layers, path)

    @torch.no_grad()
    def __call__(self, media: Media) -> np.ndarray:
        size = {"height": self.side, "width": self.side}
        total = np.zeros((self.grid, self.grid))
        for frame in media.frames:
            pixels = self.processor(images=[frame], size=size, do_center_crop=False, return_tensors="pt")["pixel_values"]
            attentions = self.model(pixels.to(self.model.device), output_attentions=True).attentions
            count = self.grid**2
            for layer in self.layers:  # [1, heads, queries, keys]; the patches come last
                total += attentions[layer][0, :, -count:, -count:].mean(0).sum(0).reshape(self.grid, self.grid).double().cpu().numpy()
        return total / (len(self.layers) * len(media.frames))


class _Tower:
    """The policy's own vision tower (Qwen2-VL and its successors)."""

    NAME: ClassVar[str] = "mmrl_attention_received"

    def __init__(self, policy: Policy, processor: Any, layers: tuple[int, ...]) -> None:
        self.tower, self.device = policy.base.model.visual, policy.device
        depth = len(self.tower.blocks)
        self.whole = getattr(self.tower.config, "fullatt_block_indexes", None)
        spread = range(depth // 2, max(depth // 2 + 1, math.ceil(0.75 * depth)))
        self.layers = layers or tuple(self.whole or spread)
        _check_layers(self.layers, depth, "the policy's vision tower")
        self.pictures, self.clips = VisionInput.of(processor.image_processor), VisionInput.of(processor.video_processor)

    @torch.no_grad()
    def __call__(self, media: Media) -> np.ndarray:
        pixels, grid = (self.clips if media.is_video else self.pictures)(media.frames)
        received = self._received(torch.from_numpy(pixels).to(self.device), torch.from_numpy(grid).to(self.device))
        frames, down, across = grid[0].tolist()
        merge = self.tower.config.spatial_merge_size
        blocks = received.reshape(frames, down // merge, across // merge, merge, merge)
        return blocks.transpose(0, 1, 3, 2, 4).reshape(frames, down, across).mean(0)

    def _received(self, pixels: Tensor, grid: Tensor) -> np.ndarray:
        """Attention paid to each patch, in the processor's order of patches, float64 [N]."""
        attending = {id(self.tower.blocks[layer].attn) for layer in self.layers}
        notes: dict[int, list[Tensor]] = {key: [] for key in attending}

        def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any = None, **kwargs: Any) -> tuple[Tensor, None]:
            """[1, h, s, d] each; called picture by picture, or window by window. Head by head, so that one score matrix is held."""
            outs, paid = [], torch.zeros(key.shape[2], dtype=torch.float64, device=key.device)
            for q, k, v in zip(query[0], key[0], value[0], strict=True):
                weights = (q.float() @ k.float().T * kwargs["scaling"]).softmax(-1)
                outs.append(weights.to(v.dtype) @ v)
                paid += weights.sum(0, dtype=torch.float64) / query.shape[1]
            if id(module) in notes:
                notes[id(module)].append(paid)
            return torch.stack(outs, 1)[None], None

        AttentionInterface.register(self.NAME, attention)
        before = self.tower.config._attn_implementation
        self.tower.config._attn_implementation = self.NAME
        try:
            self.tower(pixels, grid_thw=grid)
        finally:
            self.tower.config._attn_implementation = before
        received = torch.stack([torch.cat(pieces) for pieces in notes.values()]).mean(0)
        if self.whole is not None:  # such a tower puts its patches in the order of windows, four by four
            config = self.tower.config
            order, _ = get_vision_window_index(grid, config.spatial_merge_size, config.window_size, config.patch_size)
            received = received.reshape(-1, config.spatial_merge_size**2)[order.to(received.device).argsort()].reshape(-1)
        return received.cpu().numpy()


def _check_layers(layers: tuple[int, ...], depth: int, what: str) -> None:
    if not all(0 <= layer < depth for layer in layers):
        raise ValueError(f"layers: got {layers}; {what} has the layers 0 to {depth - 1}")
