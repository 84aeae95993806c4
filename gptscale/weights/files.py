"""Tensors in safetensors files. The home of safetensors: nothing read here can run code."""

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

PIECE_ELEMENTS = 2**22
"""What `pieces` reads at once: 16 MiB of float32."""


class TensorReader(Protocol):
    """An open file of named tensors."""

    def keys(self) -> list[str]:
        """The names in the file."""
        ...

    def read(self, key: str, start: int, stop: int) -> Tensor:
        """Elements start to stop of a 1-D tensor; only these are read from disk."""
        ...

    def whole(self, key: str) -> Tensor:
        """A tensor in its own shape."""
        ...

    def shape(self, key: str) -> tuple[int, ...]:
        """A tensor's shape, from the file's header."""
        ...

    def pieces(self, key: str) -> Iterator[Tensor]:
        """A 1-D tensor piece by piece, for what needs to see all of it but not at once."""
        ...


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors, live views without a copy in between, and wait until they are on disk.

    Raises OSError, with ENOSPC for a full disk.
    """
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        number = errno.ENOSPC if f"os error {errno.ENOSPC}" in str(error) else errno.EIO
        raise OSError(number, str(error), str(path)) from error
    path.chmod(0o644)  # safetensors writes 0600, which colleagues on a shared disk cannot read
    with open(path, "rb") as file:
        os.fsync(file.fileno())


@contextmanager
def open_tensors(path: Path) -> Iterator[TensorReader]:
    """Open a file for reading by name and range."""
    with safe_open(path, framework="pt", backend="pread") as file:
        yield _Reader(file)


class _Reader:
    def __init__(self, file: safe_open) -> None:
        self._file = file

    def keys(self) -> list[str]:
        return list(self._file.keys())  # type: ignore[no-untyped-call]

    def read(self, key: str, start: int, stop: int) -> Tensor:
        return self._file.get_slice(key)[start:stop]  # type: ignore[no-any-return, no-untyped-call]

    def whole(self, key: str) -> Tensor:
        return self._file.get_tensor(key)  # type: ignore[no-any-return, no-untyped-call]

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(key).get_shape())  # type: ignore[no-untyped-call]

    def pieces(self, key: str) -> Iterator[Tensor]:
        (numel,) = self.shape(key)
        for start in range(0, numel, PIECE_ELEMENTS):
            yield self.read(key, start, min(start + PIECE_ELEMENTS, numel))
