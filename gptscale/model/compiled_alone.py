"""Functions that operators of our own compile on their own."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

_VIEWS = torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView)


@cache
def compiled_alone(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile on its own, so that it is done once for all calls; not before it is needed, since it takes a second."""
    compiled = torch.compile(function, dynamic=False)

    def call(*args: Any) -> Any:
        # torch looks at an operator's first call in a mode without this key. What was compiled then is guarded on
        # that, and without the key the second call would compile all of it again.
        with torch._C._ExcludeDispatchKeyGuard(_VIEWS):
            return compiled(*args)

    return call
