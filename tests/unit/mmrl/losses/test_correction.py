import math

import pytest
import torch

from mmrl.losses.clipped_surrogate import ClippedSurrogate
from mmrl.losses.correction import MaskedImportance, TruncatedImportance, importance_weights

OLD, SAMPLED = [[-1.0, -2.0, -0.5]], [[-1.2, -3.0, -0.1]]  # gaps 0.2, 1.0, -0.4; sum 0.8


@pytest.mark.parametrize(
    ("correction", "expected"),
    [
        (TruncatedImportance(cap=2.0), [1.221403, 2.0, 0.670320]),
        (MaskedImportance(0.5, 2.0), [1.221403, 0.0, 0.670320]),
        (MaskedImportance(0.7, 3.0), [1.221403, 2.718282, 0.0]),
        (TruncatedImportance(cap=2.0, level="sequence"), [2.0, 2.0, 2.0]),
        (TruncatedImportance(cap=3.0, level="sequence"), [2.225541] * 3),
        (MaskedImportance(0.5, 2.0, level="sequence"), [0.0, 0.0, 0.0]),
        (MaskedImportance(0.0, 3.0, level="sequence"), [2.225541] * 3),
    ],
)
def test_hand_worked_weights(loss_inputs, correction, expected):
    weights = correction(loss_inputs(logps=OLD, sampling_logps=SAMPLED))
    torch.testing.assert_close(weights, torch.tensor([expected]), atol=1e-5, rtol=0)


def test_raw_token_weights(loss_inputs):
    weights = importance_weights(loss_inputs(logps=OLD, sampling_logps=SAMPLED), "token")
    torch.testing.assert_close(weights, torch.tensor([[1.221403, 2.718282, 0.670320]]), atol=1e-5, rtol=0)


def test_weights_come_from_old_and_not_from_now_and_carry_no_gradient(loss_inputs):
    x = loss_inputs(logps=[[-9.0, -9.0, -9.0]], old_logps=OLD, sampling_logps=SAMPLED)
    x.old_logps.requires_grad_()
    weights = TruncatedImportance(cap=9.0)(x)
    torch.testing.assert_close(weights, torch.tensor([[1.221403, 2.718282, 0.670320]]), atol=1e-5, rtol=0)
    assert not weights.requires_grad


def test_old_logps_taken_from_the_engine_leave_nothing_to_correct(loss_inputs):
    """The "bypass": w = 1, so the ratio now / engine is counted once."""
    x = loss_inputs(logps=[[-1.0, -2.0]], old_logps=[[-1.3, -1.5]], sampling_logps=[[-1.3, -1.5]])
    torch.testing.assert_close(
        ClippedSurrogate(correction=TruncatedImportance())(x).per_token, ClippedSurrogate()(x).per_token, rtol=0, atol=0
    )


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_padding_never_reaches_the_weights(loss_inputs, level):
    """Sums and products are over the three counted tokens; on padding the raw weight is 1."""
    padded = loss_inputs(logps=[[*OLD[0], math.nan]], sampling_logps=[[*SAMPLED[0], math.inf]], mask=[[True, True, True, False]])
    bare = loss_inputs(logps=OLD, sampling_logps=SAMPLED)
    weights = importance_weights(padded, level)
    torch.testing.assert_close(weights[:, :3], importance_weights(bare, level))
    assert weights[0, 3] == 1


def test_probability_zero_at_the_engine_is_held_and_a_missing_one_is_nan(loss_inputs):
    x = loss_inputs(logps=[[-1.0, -1.0]], sampling_logps=[[-math.inf, math.nan]])
    assert importance_weights(x, "token")[0, 0] == pytest.approx(math.exp(20))
    truncated, masked = TruncatedImportance(cap=2.0)(x), MaskedImportance()(x)
    assert truncated[0, 0] == 2
    assert masked[0, 0] == 0
    assert truncated[0, 1].isnan()
    assert masked[0, 1].isnan()


def test_metrics_of_a_corrected_term(loss_inputs):
    x = loss_inputs(logps=OLD, sampling_logps=SAMPLED)
    metrics = ClippedSurrogate(correction=MaskedImportance(0.5, 2.0))(x).metrics
    name = "sampling/importance_sampling_ratio"
    torch.testing.assert_close(metrics[f"{name}/mean"], torch.tensor([[1.221403, 0.0, 0.670320]]))
    torch.testing.assert_close(metrics[f"{name}/mean_square"], torch.tensor([[1.491825, 0.0, 0.449329]]))
    assert metrics[f"{name}/masked"].tolist() == [[0, 1, 0]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TruncatedImportance(cap=0.0), "cap must be > 0; got 0.0"),
        (lambda: TruncatedImportance(level="row"), "level must be token or sequence; got 'row'"),
        (lambda: MaskedImportance(low=2.0, high=1.0), "need 0 <= low < high; got low 2.0, high 1.0"),
        (lambda: MaskedImportance(low=-0.5), "need 0 <= low < high; got low -0.5, high 2.0"),
    ],
)
def test_ranges(make, message):
    with pytest.raises(ValueError, match=message):
        make()
