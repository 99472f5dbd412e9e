"""Loops over pixels as machine code."""

from collections.abc import Callable
from functools import cache, wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def compiled(loop: Callable[P, R]) -> Callable[P, R]:
    """`loop` compiled by numba when it is first called, and kept on disk beside its file (or, where that cannot be written, in the user's
    cache). Loading numba takes half a second, which a command that looks at no pixel is spared.

    No fast maths: each sum and product is rounded as numpy rounds it, so the bytes are the same on every machine. A compiled loop cannot
    call another.
    """

    @cache
    def machine_code() -> Callable[P, R]:
        import numba

        return numba.njit(cache=True, nogil=True)(loop)

    @wraps(loop)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return machine_code()(*args, **kwargs)

    return call
