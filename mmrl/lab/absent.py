"""A stand-in for what a log does not hold."""

from typing import Any

from mmrl.errors import RewardError


class Absent:
    """May be handed around, to another process too; whatever looks inside gets a RewardError that says what is missing."""

    def __init__(self, message: str) -> None:
        self._message = message

    def __reduce__(self) -> tuple[type["Absent"], tuple[str]]:
        return Absent, (self._message,)

    def tolist(self) -> "Absent":
        """Itself: an adapter that turns every column into lists must not fail for a function that never looks."""
        return self

    def _refuse(self, *_: Any) -> Any:
        raise RewardError(self._message)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what pickle and copy ask for
            raise AttributeError(name)
        return self._refuse()

    __len__ = __iter__ = __getitem__ = __contains__ = __bool__ = __str__ = __format__ = __array__ = _refuse
    __eq__ = __add__ = __radd__ = __int__ = __float__ = _refuse  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]
