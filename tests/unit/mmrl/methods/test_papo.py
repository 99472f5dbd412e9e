"""PAPO's acceptance numbers (absolute tolerance 1e-5), by hand and by enumeration of a small vocabulary."""

import math

import numpy as np
import pytest
import torch
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from data_pipelines.perturb.masks import PatchMask
from mmrl.advantages.filters import keep_group
from mmrl.advantages.grpo import GRPO
from mmrl.batch import LossInputs
from mmrl.methods.papo import Perception, SampledNLL, SemanticMask
from mmrl.models.patchify import VisionInput
from mmrl.seeding import stream
from mmrl.types import GroupRewards, Media

LOGPS, MASKED = [-0.1, -0.5, -2.0], [-1.1, -0.5, -1.0]
TIGHT = {"atol": 1e-5, "rtol": 0}


def inputs(logps, seen, mask=None, view="masked"):
    logps = torch.tensor([logps], dtype=torch.float32, requires_grad=True)
    mask = torch.ones_like(logps, dtype=torch.bool) if mask is None else torch.tensor([mask])
    seen = torch.tensor([seen], dtype=torch.float32)
    return LossInputs(logps, logps.detach(), torch.zeros_like(seen), mask, view_logps={view: seen})


def close(came, expected):
    torch.testing.assert_close(came, torch.tensor(expected, dtype=came.dtype).reshape(came.shape), **TIGHT)


# --- the term ---------------------------------------------------------------------------------------------------------------------------


def test_divergence_term_and_gradient_of_three_tokens():
    """Check 1: .367879, 0, .718282; mean .362054; term at gamma .02; its gradient."""
    x = inputs(LOGPS, MASKED)
    out = Perception()(x)
    close(-out.per_token, [0.367879, 0.0, 0.718282])
    assert out.metrics["perception/kl"].mean().item() == pytest.approx(0.362054, abs=1e-5)
    loss = 0.02 * (out.per_token / 3).sum()
    assert loss.item() == pytest.approx(-0.007241, abs=1e-5)
    loss.backward()
    close(x.logps.grad, [-0.004214, 0.0, 0.011455])


def test_double_entropy_of_three_tokens():
    """Check 2: H = H_m = .866667; the extra loss; with the masked pass cached, its gradient."""
    x = inputs(LOGPS, MASKED)
    nll, nll_masked = SampledNLL()(x), SampledNLL("masked")(x)
    assert nll.metrics["perception/nll"].mean().item() == pytest.approx(0.866667, abs=1e-5)
    assert nll_masked.metrics["perception/nll_masked"].mean().item() == pytest.approx(0.866667, abs=1e-5)
    loss = (0.02 * Perception()(x).per_token + 0.05 * nll.per_token + 0.05 * nll_masked.per_token).sum() / 3
    assert loss.item() == pytest.approx(0.079426, abs=1e-5)
    loss.backward()
    close(x.logps.grad, [-0.020881, -0.016667, -0.005212])


@pytest.mark.parametrize(
    ("d", "value", "slope"),
    [
        (5.0, 10.0, 0.0),  # check 3: 142.413 before the cap, and no gradient
        (-3.0, 2.049787, 1 - math.exp(-3)),  # the paper's printed ratio would give 16.085537
        (2.6108, 9.999230, 1 - math.exp(2.6108)),  # just below the cap
        (2.6109, 10.0, 0.0),
        (-10.9999, 9.9999167, 1 - math.exp(-10.9999)),
        (-11.0, 10.0, 0.0),
        (-25.0, 10.0, 0.0),  # d is held at -20 first
    ],
)
def test_the_cap(d, value, slope):
    x = inputs([-30.0], [-30.0 + d])
    out = Perception()(x)
    assert -out.per_token.item() == pytest.approx(value, abs=2e-4 if 9.9 < value < 10 else 1e-5)
    (-out.per_token).sum().backward()
    assert x.logps.grad.item() == pytest.approx(slope, abs=1e-3 if slope < -1 else 1e-5)
    assert out.metrics["perception/capped"].item() == float(value == 10)


def test_raw_value_above_the_cap():
    assert -Perception(cap=1e9)(inputs([-9.0], [-4.0])).per_token.item() == pytest.approx(142.413, abs=1e-3)


def test_a_cap_of_a_fifth():
    """The authors' capped form: .367879 and .718282 are held at .2, 0 stays."""
    x = inputs(LOGPS, MASKED)
    out = Perception(cap=0.2)(x)
    close(-out.per_token, [0.2, 0.0, 0.2])
    out.per_token.sum().backward()
    close(x.logps.grad, [0.0, 0.0, 0.0])
    assert out.metrics["perception/capped"].mean().item() == pytest.approx(2 / 3)


def test_expected_value_and_gradient_over_the_vocabulary():
    """Check 4: pi = (.7, .2, .1), masked (.4, .4, .2): E = KL(pi, masked); the gradients on the logits, exactly by enumeration."""
    pi, masked = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.4, 0.4, 0.2])

    def expectation(term):
        logits = pi.log().clone().requires_grad_()
        logps = logits.log_softmax(0)[None]
        x = LossInputs(
            logps, logps.detach(), logps.detach() * 0, torch.ones(1, 3, dtype=torch.bool), view_logps={"masked": masked.log()[None]}
        )
        per_token = term(x).per_token
        (per_token * pi).sum().backward()  # each token as often as it is drawn; no gradient through the drawing
        return (per_token * pi).sum().item(), logits.grad

    value, gradient = expectation(Perception())
    assert -value == pytest.approx(0.183787, abs=1e-5)
    assert -value == pytest.approx(float((pi * (pi / masked).log()).sum()), abs=1e-6)
    close(-gradient, [0.3, -0.2, -0.1])
    close(expectation(SampledNLL())[1], [0.0, 0.0, 0.0])
    logits = pi.log().clone().requires_grad_()
    logps = logits.log_softmax(0)
    (-(logps.exp() * logps).sum()).backward()
    close(logits.grad, [-0.311601, 0.161524, 0.150077])  # of the true entropy, which the sampled one is not


def test_the_tokens_that_diverge_most_are_kept():
    """Of five tokens the upper fifth: .8 quantile between the fourth and the fifth. The other row has two tokens and keeps its larger."""
    logps = torch.full((2, 5), -3.0, requires_grad=True)
    seen = logps.detach() - torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.5], [0.9, 0.1, 7.0, 7.0, 7.0]])
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    out = Perception(top_p=0.2)(LossInputs(logps, logps.detach(), logps.detach() * 0, mask, view_logps={"masked": seen}))
    assert (out.per_token != 0).tolist() == [[False] * 4 + [True], [True] + [False] * 4]
    assert (Perception(top_p=1.0)(LossInputs(logps, logps, logps, mask, view_logps={"masked": seen})).per_token != 0).sum() == 7


def test_vision_dependent_means_twice_as_likely_with_the_picture():
    seen = [-1.0 - 0.7, -1.0 - 0.69, -1.0 + 3.0]  # log 2 = .6931
    metrics = Perception()(inputs([-1.0] * 3, seen)).metrics
    assert metrics["perception/dependent"].tolist() == [[1.0, 0.0, 0.0]]
    close(metrics["perception/gap"], [0.7, 0.69, -3.0])


def test_padding_never_matters():
    x = inputs([-1.0, math.nan], [-2.0, math.inf], mask=[True, False])
    for term in (Perception(), Perception(top_p=0.5), SampledNLL(), SampledNLL("masked")):
        out = term(x)
        assert out.per_token[0, 1].item() == 0
        assert all(values.isfinite().all() for values in out.metrics.values())
        (grad,) = torch.autograd.grad(out.per_token.sum(), x.logps, allow_unused=True) if out.per_token.requires_grad else (None,)
        assert grad is None or grad[0, 1].item() == 0


@pytest.mark.parametrize(("masked_pass", "need"), [("cached", "view:v"), ("live", "view_now:v"), ("gradient", "view_grad:v")])
def test_needs_say_which_pass(masked_pass, need):
    assert Perception("v", masked_pass).needs == {need}
    assert SampledNLL("v", masked_pass).needs == {need}
    assert SampledNLL().needs == frozenset()
    assert Perception.needs == frozenset()


def test_bad_fields_are_refused():
    for fields in ({"cap": 0.0}, {"cap": math.inf}, {"top_p": 0.0}, {"top_p": 1.5}, {"masked_pass": "later"}):
        with pytest.raises(ValueError, match=next(iter(fields))):
            Perception(**fields)


# --- the picture ------------------------------------------------------------------------------------------------------------------------


def test_random_masks():
    """Check 5: ratio 0 leaves every byte, 1 none; 28 x 42 has 2 x 3 cells, 30 x 30 has 3 x 3; .6 of 10,000 cells within 3 sigma."""
    picture = Media(np.random.default_rng(0).integers(1, 256, (1, 28, 42, 3), np.uint8))
    assert PatchMask(0.0)(picture, stream(0)).frames.tobytes() == picture.frames.tobytes()
    assert not PatchMask(1.0)(picture, stream(0)).frames.any()
    for height, width, cells in ((28, 42, 6), (30, 30, 9)):
        white = Media(np.full((1, height, width, 3), 255, np.uint8))
        seen = {PatchMask(0.5)(white, stream(n)).frames[0, ::14, ::14, 0].tobytes() for n in range(200)}
        assert all(len(pattern) == cells for pattern in seen)
    large = PatchMask(0.6)(Media(np.full((1, 1400, 1400, 3), 255, np.uint8)), stream(1)).frames[0, ::14, ::14, 0]
    assert large.size == 10_000
    assert (large == 0).mean() == pytest.approx(0.6, abs=0.0147)


def test_without_a_mask_the_term_is_zero():
    """Check 5: the same picture, the same log-probabilities."""
    x = inputs(LOGPS, LOGPS)
    out = Perception()(x)
    out.per_token.sum().backward()
    assert not out.per_token.any()
    assert not x.logps.grad.any()


def test_advantages_of_five_rewards():
    """Check 7: .9 accuracy + .1 format; DAPO's filter drops none and all."""
    rewards = 0.9 * np.array([1, 0, 0, 1, 0], np.float32) + np.float32(0.1)
    (advantages,) = GRPO(epsilon=1e-6)([GroupRewards(rewards, np.ones(5, np.int64))])
    np.testing.assert_allclose(np.concatenate(advantages), [1.095443, -0.730295, -0.730295, 1.095443, -0.730295], atol=1e-5)
    assert [keep_group(np.array([1.0] * n + [0.0] * (5 - n)), 0.01, 0.99) for n in range(6)] == [False, True, True, True, True, False]


# --- the semantic-aware mask ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    """A random DINOv2 of two layers on 4 x 4 patches."""
    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14, initializer_range=0.5)
    Dinov2Model(config).save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 56, "width": 56}).save_pretrained(folder)
    return folder


def test_a_vision_transformer_given_by_path(dino, shared_policy):
    """Scores against its own attentions, the class token left out; floor(.6 * 16) = 9 of 16 patches go black."""
    picture = Media(np.random.default_rng(0).integers(1, 256, (1, 112, 56, 3), np.uint8))
    mask = SemanticMask(path=str(dino), layers=(0, 1))
    mask.attach(shared_policy, None)
    seen = mask(picture, stream(0)).frames[0]
    black = ~seen.reshape(4, 28, 4, 14, 3).any((1, 3, 4))
    assert black.sum() == 9
    model = Dinov2Model.from_pretrained(dino, attn_implementation="eager").eval()
    processor = BitImageProcessor.from_pretrained(dino)
    pixels = processor(images=[picture.frames[0]], size={"height": 56, "width": 56}, do_center_crop=False, return_tensors="pt")
    with torch.no_grad():
        attentions = model(**pixels, output_attentions=True).attentions
    scores = sum(a[0].mean(0)[1:, 1:].sum(0) for a in attentions).reshape(4, 4).numpy()
    assert scores[black].min() >= scores[~black].max()


def test_layers_that_the_model_does_not_have(dino, shared_policy, processor):
    with pytest.raises(ValueError, match=r"layers: got \(6, 7, 8, 9\); .* has the layers 0 to 1"):
        SemanticMask(path=str(dino)).attach(shared_policy, None)
    with pytest.raises(ValueError, match=r"layers: got \(2,\); the policy's vision tower has the layers 0 to 1"):
        SemanticMask(layers=(2,)).attach(shared_policy, processor)
    with pytest.raises(ValueError, match="semantic_mask needs a model to look with"):
        SemanticMask()(Media(np.zeros((1, 28, 28, 3), np.uint8)), stream(0))


def plain_scores(tower, pixels, grid, layers):
    """Attention received per patch, [down, across], from transformers' own eager attention, patch by patch in the tower's order."""
    paid = []
    hooks = []
    for layer in layers:

        def note(module, args, kwargs, module_of=tower.blocks[layer].attn):
            hidden, (cos, sin) = args[0] if args else kwargs["hidden_states"], kwargs["position_embeddings"]
            q, k, _ = module_of.qkv(hidden).reshape(len(hidden), 3, module_of.num_heads, -1).permute(1, 2, 0, 3)
            turn = lambda x: torch.cat((-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]), -1)  # noqa: E731
            q, k = (x * cos + turn(x) * sin for x in (q, k))
            paid.append((q @ k.transpose(1, 2) * module_of.scaling).softmax(-1).mean(0).sum(0))

        hooks.append(tower.blocks[layer].attn.register_forward_pre_hook(note, with_kwargs=True))
    with torch.no_grad():
        tower(pixels, grid_thw=grid)
    for hook in hooks:
        hook.remove()
    return torch.stack(paid).mean(0)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_the_policys_own_tower(family, shared_policy, processor, qwen3_vl):
    """A picture of 4 x 6 merged patches, more than one window wide: the scores lie where their patches lie."""
    from mmrl.models.policy import Policy

    policy = shared_policy if family == "qwen2_5_vl" else Policy(qwen3_vl[0])
    its = processor if family == "qwen2_5_vl" else qwen3_vl[1]
    side = 28 if family == "qwen2_5_vl" else 32
    picture = Media(np.random.default_rng(1).integers(1, 256, (1, 4 * side, 6 * side, 3), np.uint8))
    mask = SemanticMask(0.5, layers=(1,))
    mask.attach(policy, its)
    before = policy.base.model.visual.config._attn_implementation
    scores = mask._scores(picture)
    assert policy.base.model.visual.config._attn_implementation == before
    assert scores.shape == (8, 12)
    assert scores.sum() == pytest.approx(96, rel=1e-4)  # every patch pays 1 in all
    pixels, grid = (torch.from_numpy(value) for value in VisionInput.of(its.image_processor)(picture.frames))
    expected = plain_scores(policy.base.model.visual, pixels, grid, (1,))
    np.testing.assert_allclose(np.sort(scores.ravel()), np.sort(expected.numpy()), rtol=1e-4)  # in whatever order
    black = ~mask(picture, stream(0)).frames[0].reshape(8, side // 2, 12, side // 2, 3).any((1, 3, 4))
    assert black.sum() == 48
    assert scores[black].min() >= scores[~black].max()


def test_the_own_towers_scores_lie_where_their_patches_lie(shared_policy, processor):
    """One white block on black, in four places: it is there that the scores differ most from those of a black picture."""
    mask = SemanticMask(layers=(1,))
    mask.attach(shared_policy, processor)

    def oddest(row, column):
        frames = np.zeros((1, 6 * 28, 6 * 28, 3), np.uint8)
        frames[:, row * 28 : row * 28 + 28, column * 28 : column * 28 + 28] = 255
        change = mask._scores(Media(frames)) - mask._scores(Media(np.zeros_like(frames)))
        blocks = np.abs(change).reshape(6, 2, 6, 2).sum((1, 3))
        return np.unravel_index(blocks.argmax(), blocks.shape)

    assert [oddest(*place) for place in ((0, 0), (1, 4), (5, 2), (4, 5))] == [(0, 0), (1, 4), (5, 2), (4, 5)]


def test_a_clip_has_one_mask(shared_policy, processor):
    clip = Media(np.random.default_rng(2).integers(1, 256, (4, 56, 84, 3), np.uint8), np.arange(4) / 2)
    mask = SemanticMask()
    mask.attach(shared_policy, processor)
    seen = mask(clip, stream(0)).frames
    black = (seen == 0).all(-1)
    assert (black == black[0]).all()
    assert black.any()
