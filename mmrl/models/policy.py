"""The trained model seen from the loop: a stream goes in, log-probabilities of its completion tokens come out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmrl.errors import RecipeError
from mmrl.head import chunked_logps_entropy
from mmrl.models.positions import VisionLayout
from mmrl.models.stream import Stream

SUPPORTED_TYPES = ("qwen2_5_vl", "qwen2_vl")


class Policy(nn.Module):
    """A vision-language model of transformers, its parts by name. Wrapped whole, so that gradient hooks of any wrapper see one forward."""

    banned_ids: Tensor

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        base = self.base
        self.layout = VisionLayout(
            image_token_id=base.config.image_token_id,
            video_token_id=base.config.video_token_id,
            merge_size=base.config.vision_config.spatial_merge_size,
            tokens_per_second=getattr(base.config.vision_config, "tokens_per_second", None),
        )
        self.register_buffer("banned_ids", torch.tensor([self.layout.image_token_id, self.layout.video_token_id]), persistent=False)

    @property
    def base(self) -> Any:
        """The transformers model itself, adapters or not."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def device(self) -> torch.device:
        return self.banned_ids.device

    @property
    def can_pack(self) -> bool:
        """Whether its attention takes a mask of ours, which packed streams need."""
        return self.base.config.get_text_config()._attn_implementation in ("sdpa", "eager")

    def embed(self, ids: Tensor, mm_inputs: Mapping[str, Tensor]) -> Float[Tensor, "l s d"]:
        """Token embeddings with vision features in the places of the vision tokens. Each medium is encoded once."""
        base = self.base
        embeds = base.get_input_embeddings()(ids)
        for kind, token_id in (("image", self.layout.image_token_id), ("video", self.layout.video_token_id)):
            pixels = mm_inputs.get("pixel_values" if kind == "image" else "pixel_values_videos")
            if pixels is None:
                continue
            encode = base.model.get_image_features if kind == "image" else base.model.get_video_features
            features = torch.cat(list(encode(pixels, mm_inputs[f"{kind}_grid_thw"]).pooler_output)).to(embeds.dtype)
            embeds = embeds.masked_scatter((ids == token_id)[..., None], features)
        return embeds

    def hidden(self, embeds: Tensor, positions: Tensor, mask: Tensor | None, **cache: Any) -> Any:
        """The language model's output; `mask` is a boolean [L, 1, S, S], an integer [L, S] of padding, or None. Raises RecipeError for
        a boolean mask under an attention that would leave it out."""
        use_cache = bool(cache)
        if mask is not None and mask.dtype == torch.bool:
            attention = self.base.config.get_text_config()._attn_implementation
            if not self.can_pack:
                raise RecipeError(f"model.attn_implementation: {attention!r} cannot pack rows; use sdpa, or set update.forward: naive")
            if attention == "eager":  # it adds the mask to the scores
                mask = torch.zeros_like(mask, dtype=embeds.dtype).masked_fill(~mask, torch.finfo(embeds.dtype).min)
        return self.base.model.language_model(
            inputs_embeds=embeds, position_ids=positions, attention_mask=mask, use_cache=use_cache, **cache
        )

    def forward(self, stream: Stream, temperature: float, with_entropy: bool) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"] | None]:
        """Log-probability in nats, and entropy if asked for, of every completion token of the stream, float32 [n], row after row.

        The distribution is the sampler's: logits divided by `temperature`, vision tokens ruled out.
        """
        out = self.hidden(self.embed(stream.ids, stream.mm_inputs), stream.positions, stream.mask).last_hidden_state
        rows = out.flatten(0, 1)[stream.places]
        logps, entropy = chunked_logps_entropy(
            rows, self.base.lm_head.weight, stream.targets, temperature=temperature, banned_ids=self.banned_ids, with_entropy=with_entropy
        )
        return logps, entropy if with_entropy else None
