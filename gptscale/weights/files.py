"""Tensors in safetensors files. The home of safetensors: nothing read here can run code."""

import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Protocol

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gptscale.errors import WeightsError
from gptscale.weights.source import Stored, Tensors

INDEX = "model.safetensors.index.json"


class TensorReader(Protocol):
    """An open file of named tensors."""

    def keys(self) -> list[str]:
        """The names in the file."""
        ...

    def read(self, key: str, start: int, stop: int) -> Tensor:
        """Elements start to stop of a 1-D tensor; only these are read from disk."""
        ...


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write named tensors, live views without a copy in between, and wait until they are on disk.

    Raises OSError, with ENOSPC for a full disk.
    """
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
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


def stored_tensors(path: Path, backend: Literal["mmap", "pread"] = "mmap") -> dict[str, Stored]:
    """The tensors of a file, each read when it is asked for: out of the mapped file, or, with pread, into memory.

    Raises WeightsError if the file is not whole.
    """
    try:
        file = safe_open(path, framework="pt", backend=backend)
        return {name: _stored(file, name) for name in file.keys()}  # type: ignore[no-untyped-call]  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is cut short or no safetensors file ({error}); copy it again") from None


def indexed_tensors(index: Path, open_file: Callable[[Path], Tensors] = stored_tensors) -> dict[str, Stored]:
    """The tensors of several files with an index. Raises WeightsError where the two do not agree."""
    try:
        files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        parts = {file: open_file(index.with_name(Path(file).name)) for file in sorted(set(files.values()))}
        return {name: parts[file][name] for name, file in files.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index} cannot be read ({error}); copy it again") from None
    except KeyError as error:
        raise WeightsError(f"{index} and its files do not agree about {error}; copy them again") from None


def pack(sizes: Mapping[str, int], most_bytes: int) -> list[list[str]]:
    """Names in groups of at most so many bytes, in their order; one that is larger by itself stands alone."""
    groups: list[list[str]] = []
    filled = most_bytes
    for name, size in sizes.items():
        if filled + size > most_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return groups


def _stored(file: safe_open, name: str) -> Stored:
    shape = tuple(file.get_slice(name).get_shape())  # type: ignore[no-untyped-call]
    return Stored(shape, lambda: file.get_tensor(name))  # type: ignore[no-untyped-call]


class _Reader:
    def __init__(self, file: safe_open) -> None:
        self._file = file

    def keys(self) -> list[str]:
        return list(self._file.keys())  # type: ignore[no-untyped-call]

    def read(self, key: str, start: int, stop: int) -> Tensor:
        return self._file.get_slice(key)[start:stop]  # type: ignore[no-any-return, no-untyped-call]
