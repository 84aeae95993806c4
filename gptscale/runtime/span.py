"""How long a device works, measured without waiting for it."""

import time
from typing import Self

import torch


class Span:
    """Times the work of a `with` block; a CUDA device notes itself when it comes to its beginning and its end."""

    def __init__(self, device: torch.device) -> None:
        self._events = (_event(), _event()) if device.type == "cuda" else None

    def __enter__(self) -> Self:
        if self._events:
            self._events[0].record()
        self._began = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self._host_s = time.perf_counter() - self._began
        if self._events:
            self._events[1].record()

    def seconds(self) -> float:
        """Of the whole block; waits until the device has come to its end."""
        if not self._events:
            return self._host_s
        began, ended = self._events
        ended.synchronize()
        return float(began.elapsed_time(ended)) / 1000


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
