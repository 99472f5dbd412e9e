"""Group sequence policy optimization: one ratio per completion."""

from dataclasses import dataclass
from typing import ClassVar

from mmrl.batch import LossInputs, TermOutput
from mmrl.losses.clipped_surrogate import check_clip, clip_loss, clip_metrics
from mmrl.losses.correction import corrected
from mmrl.losses.needs import add_needs
from mmrl.ops import log_ratio, masked
from mmrl.protocols import Correction


@dataclass(frozen=True)
class GSPO:
    """The clipped surrogate on s_i = exp(mean over the row's tokens of log(pi / pi_old)) (arXiv:2507.18071, eqs. 5-7).

    In its token form (eqs. 13-14), s_{i,t} = sg[s_i] * pi / sg[pi]: the value of every token is that of the sequence, and under
    `aggregation: sequence_mean`, which the paper uses, the gradient is that of the sequence form. Leave out the reference KL.
    `epsilon` in (0, 1], `epsilon_high` > 0; the defaults are the paper's (section 5.1), hundreds of times smaller than
    PPO's because the mean shrinks the ratio. Metrics as in `ClippedSurrogate`, but a row counts once per token, not once.
    """

    epsilon: float = 3e-4
    epsilon_high: float = 4e-4
    correction: Correction | None = None
    needs: ClassVar[frozenset[str]] = frozenset({"old_logps"})
    zero_without_advantage: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_clip(self.epsilon, self.epsilon_high)
        if self.correction is not None:
            add_needs(self, "sampling_logps")

    def __call__(self, x: LossInputs) -> TermOutput:
        advantages = masked(x.advantages, x.mask)
        num_tokens = x.mask.sum(-1, keepdim=True).clamp(min=1)
        sequence = log_ratio(x.logps, x.old_logps, x.mask).sum(-1, keepdim=True).div(num_tokens).detach()
        logps = masked(x.logps, x.mask)
        ratio = sequence.exp() * (logps - logps.detach()).exp()
        metrics = clip_metrics(ratio, advantages, self.epsilon, self.epsilon_high)
        loss, correction_metrics = corrected(clip_loss(ratio, advantages, self.epsilon, self.epsilon_high), self.correction, x)
        return TermOutput(loss, {**metrics, **correction_metrics})
