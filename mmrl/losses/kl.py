"""KL to the reference, estimated from the sampled tokens."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from mmrl.batch import LossInputs, TermOutput
from mmrl.losses.needs import add_needs, needed
from mmrl.ops import kl_k1, kl_k2, kl_k3, log_ratio, masked

Estimator = Literal["k1", "k2", "k3", "k3_unbiased", "k3_plus"]


@dataclass(frozen=True)
class KLToReference:
    """Penalty per token; the term's weight in the recipe is GRPO's beta. A correction for the engine is never applied to it.

    With x = ref_logps - logps (held in [-20, 20]) and samples from pi, as a loss on tokens already drawn:

    | estimator   | value                    | expected gradient                                          |
    |-------------|--------------------------|------------------------------------------------------------|
    | k1          | -x                       | 0: useless as a loss; use it in the reward                  |
    | k2          | x^2 / 2 (biased)         | of KL(pi, ref)                                             |
    | k3          | e^x - x - 1              | of KL(ref, pi), the other direction (GRPO, arXiv:2402.03300, eq. 4) |
    | k3_unbiased | r (e^x - x - 1)          | of KL(pi, ref); r = pi / pi_old with gradient (DeepSeek-V3.2, arXiv:2512.02556) |
    | k3_plus     | e^x - x - 1              | of KL(pi, ref): value of k3, gradient of k2 (verl)         |

    `cap`: bound on e^x - x - 1 with zero gradient above it (10 in verl and EasyR1; None in TRL); for the k3 forms only.
    Metric: kl, the estimator's value.
    """

    estimator: Estimator = "k3"
    cap: float | None = None
    needs: ClassVar[frozenset[str]] = frozenset({"ref_logps"})

    def __post_init__(self) -> None:
        if self.estimator not in get_args(Estimator):
            raise ValueError(f"estimator must be one of {', '.join(get_args(Estimator))}; got {self.estimator!r}")
        if self.cap is not None and not self.cap > 0:
            raise ValueError(f"cap must be > 0 or null; got {self.cap}")
        if self.cap is not None and not self.estimator.startswith("k3"):
            raise ValueError(f"cap bounds the k3 forms only; got cap {self.cap} with estimator {self.estimator!r}: leave it out")
        if self.estimator == "k3_unbiased":
            add_needs(self, "old_logps")

    def __call__(self, x: LossInputs) -> TermOutput:
        logps = masked(x.logps, x.mask)
        ref_logps = masked(needed(x, "ref_logps"), x.mask)
        if self.estimator == "k1":
            value = kl_k1(logps, ref_logps)
        elif self.estimator == "k2":
            value = kl_k2(logps, ref_logps)
        else:
            value = kl_k3(logps, ref_logps, cap=float("inf") if self.cap is None else self.cap)
        if self.estimator == "k3_unbiased":
            value = log_ratio(x.logps, x.old_logps, x.mask).exp() * value
        if self.estimator == "k3_plus":
            k2 = kl_k2(logps, ref_logps)
            value = value.detach() + (k2 - k2.detach())
        return TermOutput(value, {"kl": value.detach()})
