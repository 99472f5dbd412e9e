"""What a term asks of its inputs."""

from torch import Tensor

from mmrl.batch import LossInputs
from mmrl.protocols import LossTerm


def needed(x: LossInputs, name: str) -> Tensor:
    """The optional tensor `name` of `x`; ValueError when the caller left it out."""
    value = getattr(x, name)
    if value is None:
        raise ValueError(f"this term needs {name}, which LossInputs does not carry: compute it whenever `term.needs` names it")
    return value


def add_needs(term: LossTerm, *names: str) -> None:
    """Called from a frozen term's __post_init__ when its fields ask for more than its class does; the class keeps its own."""
    object.__setattr__(term, "needs", term.needs | set(names))
