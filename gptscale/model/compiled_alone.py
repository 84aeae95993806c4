"""Functions that operators of our own compile on their own."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch


@cache
def compiled_alone(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile on its own, so that it is done once for all calls; not before it is needed, since it takes a second."""
    return torch.compile(function, dynamic=False)
