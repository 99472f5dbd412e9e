"""The trained model seen from the loop: streams go in, log-probabilities of their completion tokens come out."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmrl.head import chunked_kl, chunked_logps_entropy
from mmrl.models.attention import FlatContext, PrefixContext, SegmentContext, StopForward, take_streams
from mmrl.models.patches import project_patches
from mmrl.models.positions import VisionLayout
from mmrl.models.spans import Spans
from mmrl.models.stream import Lines, Prefixes, Segments, stack_media
from mmrl.models.windows import take_windows
from mmrl.types import Prompt

SUPPORTED_TYPES = ("qwen2_5_vl", "qwen2_vl", "qwen3_vl")

KeysValues = list[tuple[Float[Tensor, "s hk d"], Float[Tensor, "s hk d"]]]
"""Of each layer, after rotation."""


@dataclass(frozen=True, eq=False)
class Features:
    """What the vision tower makes of one prompt's media of one kind: n tokens of width d."""

    tokens: Float[Tensor, "n d"]
    deep: tuple[Float[Tensor, "n d"], ...]
    """Added to the first layers' hidden states (DeepStack, arXiv:2406.04334); () where the family has none."""


class Policy(nn.Module):
    """A vision-language model of transformers, its parts by name. Wrapped whole, so that gradient hooks of any wrapper see one forward."""

    banned_ids: Tensor

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        base = self.base
        self.layout = VisionLayout.of(base.config)
        project_patches(base.model.visual)
        take_windows(base.model.visual)
        self.can_share = take_streams(base.model.language_model)
        """Whether its attention takes streams of ours; if not, only lines can be forwarded."""
        self.register_buffer("banned_ids", torch.tensor([self.layout.image_token_id, self.layout.video_token_id]), persistent=False)
        self._features: WeakKeyDictionary[Prompt, dict[str, Features]] = WeakKeyDictionary()

    @property
    def base(self) -> Any:
        """The transformers model itself, adapters or not."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def device(self) -> torch.device:
        return self.banned_ids.device

    # --- the vision tower ---------------------------------------------------------------------------------------------------------

    @property
    def vision_is_frozen(self) -> bool:
        return not any(p.requires_grad for p in self.base.model.visual.parameters())

    def features(self, prompts: Sequence[Prompt]) -> list[dict[str, Features]]:
        """Per prompt, "image" and "video" -> its features. All media are encoded in one call each; where the tower is frozen, once for as
        long as the prompt lives, so that every pass of a step shares them."""
        frozen = self.vision_is_frozen
        known = self._features if frozen else {}
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
        made = dict(zip(missing, self._encode(missing), strict=True)) if missing else {}
        if frozen:
            self._features.update(made)
        return [known[prompt] if prompt in known else made[prompt] for prompt in prompts]

    def _encode(self, prompts: Sequence[Prompt]) -> list[dict[str, Features]]:
        out: list[dict[str, Features]] = [{} for _ in prompts]
        for kind, pixels, encode in (
            ("image", "pixel_values", self.base.model.get_image_features),
            ("video", "pixel_values_videos", self.base.model.get_video_features),
        ):
            having = [n for n, prompt in enumerate(prompts) if pixels in prompt.mm_inputs]
            if not having:
                continue
            media = {name: value.to(self.device) for name, value in stack_media([prompts[n] for n in having]).items()}
            encoded = encode(media[pixels], media[f"{kind}_grid_thw"])
            sizes = [int(prompts[n].mm_inputs[f"{kind}_grid_thw"].prod(-1).sum()) // self.layout.merge_size**2 for n in having]
            tokens = _joined(encoded.pooler_output).split(sizes)
            deep = [_joined(layer).split(sizes) for layer in getattr(encoded, "deepstack_features", None) or ()]
            for place, n in enumerate(having):
                out[n][kind] = Features(tokens[place], tuple(layer[place] for layer in deep))
        return out

    def embed(self, ids: Tensor, prompts: Sequence[Prompt]) -> tuple[Float[Tensor, "l s d"], dict[str, Any]]:
        """Token embeddings of `ids` [L, S], which hold the vision tokens of `prompts` in order, with vision features in their places; and
        what else the language model wants to be told about them."""
        embeds = self.base.get_input_embeddings()(ids)
        features = self.features(prompts)
        is_vision = (ids == self.layout.image_token_id) | (ids == self.layout.video_token_id)
        deep: list[Tensor] = []
        for kind, token_id in (("image", self.layout.image_token_id), ("video", self.layout.video_token_id)):
            having = [each[kind] for each in features if kind in each]
            if not having:
                continue
            here = ids == token_id
            embeds = embeds.masked_scatter(here[..., None], torch.cat([f.tokens for f in having]).to(embeds.dtype))
            among = here[is_vision]  # this kind's places among all vision tokens
            for level in range(len(having[0].deep)):
                values = torch.cat([f.deep[level] for f in having]).to(embeds.dtype)
                if level == len(deep):
                    deep.append(embeds.new_zeros(len(among), embeds.shape[-1]))
                deep[level] = deep[level].masked_scatter(among[:, None], values)
        return embeds, {"visual_pos_masks": is_vision, "deepstack_visual_embeds": deep} if deep else {}

    # --- the language model -------------------------------------------------------------------------------------------------------

    def hidden(self, embeds: Tensor, positions: Tensor, mask: Tensor | None, **extra: Any) -> Any:
        """The language model's output; `mask` is an integer [L, S], 0 = padding, or None."""
        return self.base.model.language_model(
            inputs_embeds=embeds, position_ids=positions, attention_mask=mask, use_cache="past_key_values" in extra, **extra
        )

    def read_prefixes(self, prefixes: Prefixes) -> KeysValues:
        """Keys and values of the prefixes at every layer, with their graph."""
        embeds, extra = self.embed(prefixes.ids, prefixes.prompts)
        layers = self.base.config.get_text_config().num_hidden_layers
        context = PrefixContext(prefixes.lengths, layers - 1, self.device)
        with contextlib.suppress(StopForward):
            self.hidden(embeds, prefixes.positions, None, stream=context, **extra)
        return [context.keys_values[layer] for layer in range(layers)]

    def forward(
        self,
        stream: Lines | Segments,
        temperature: float,
        prefixes: Prefixes | None = None,
        keys_values: KeysValues | None = None,
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, "n d"]]:
        """Log-probability and entropy in nats, float32 [n], of every completion token of the stream, row after row, and the hidden state
        that predicts it. Segments come with their prefixes, and with the keys and values that `read_prefixes` made of them; without those,
        all of it is one stream.

        The distribution is the sampler's: logits divided by `temperature`, vision tokens ruled out.
        """
        if isinstance(stream, Lines):
            rows = self._of_lines(stream)
        else:
            assert prefixes is not None
            rows = self._flat(stream, prefixes) if keys_values is None else self._of_segments(stream, prefixes, keys_values)
        logps, entropy = chunked_logps_entropy(
            rows, self.base.lm_head.weight, stream.targets, temperature=temperature, banned_ids=self.banned_ids, with_entropy=True
        )
        assert entropy is not None
        return logps, entropy, rows

    @torch.no_grad()
    def divergence(self, one: Float[Tensor, "n d"], other: Float[Tensor, "n d"], temperature: float) -> Float[Tensor, " n"]:
        """Half the symmetric KL in nats, float32 [n], over the whole vocabulary between the distributions that two hidden states of a token
        predict: 0 to infinity, the same either way round."""
        weight = self.base.lm_head.weight
        both = chunked_kl(one, weight, other, weight, temperature=temperature, banned_ids=self.banned_ids, direction="symmetric")
        return both.float() / 2

    def _of_segments(self, segments: Segments, prefixes: Prefixes, keys_values: KeysValues) -> Float[Tensor, "n d"]:
        context = SegmentContext(segments.own(), segments.cross(prefixes), keys_values)
        return self.hidden(self.base.get_input_embeddings()(segments.ids), segments.positions, None, stream=context).last_hidden_state[0]

    def _flat(self, segments: Segments, prefixes: Prefixes) -> Float[Tensor, "n d"]:
        before = sum(prefixes.lengths)
        embeds, extra = self.embed(torch.cat([prefixes.ids, segments.ids], 1), prefixes.prompts)
        positions = torch.cat([prefixes.positions, segments.positions], 2)
        own = Spans.causal([*prefixes.lengths, *segments.lengths], self.device)
        context = FlatContext(own, segments.cross(prefixes, before), before)
        return self.hidden(embeds, positions, None, stream=context, **extra).last_hidden_state[0, before:]

    def _of_lines(self, lines: Lines) -> Float[Tensor, "n d"]:
        embeds, extra = self.embed(lines.ids, lines.prompts)
        return self.hidden(embeds, lines.positions, None, **extra).last_hidden_state.flatten(0, 1)[lines.places]


def _joined(parts: Any) -> Tensor:
    return parts if isinstance(parts, Tensor) else torch.cat(list(parts))
