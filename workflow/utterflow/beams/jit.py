"""Compilation of numeric kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

from numba import njit

Function = TypeVar("Function", bound=Callable[..., object])


def kernel(function: Function) -> Function:
    """Compile with numba at the first call; the machine code is kept beside the module for later processes.

    It is made anew when the module changes: a kernel and its parts stand in one module.
    """
    return cast(Function, njit(cache=True)(function))


def part(function: Function) -> Function:
    """Compile a function that kernels call; its machine code is kept as part of theirs."""
    return cast(Function, njit(function))
