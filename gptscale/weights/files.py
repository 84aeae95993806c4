"""Tensors in safetensors files. The home of safetensors: nothing read here can run code."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gptscale.disk import write_hashed
from gptscale.errors import WeightsError
from gptscale.weights.source import Stored, Tensors, floats

T = TypeVar("T")

INDEX = "model.safetensors.index.json"

CHUNK_ELEMENTS = 2**20
"""How much is read at once."""

_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
"""What safetensors calls the types of floating-point weights."""


class TensorReader:
    """An open file of named tensors."""

    def __init__(self, file: safe_open, path: Path) -> None:
        self._file = file
        self._path = path

    def keys(self) -> list[str]:
        """The names in the file."""
        return list(self._file.keys())  # type: ignore[no-untyped-call]

    def read_into(self, place: Tensor, key: str, start: int) -> None:
        """Fill a 1-D tensor with the float32 elements from start on, a few megabytes at a time.

        Raises OSError for elements of another type, and for a file that ends too soon.
        """
        if (dtype := self.dtype(key)) != "F32":
            raise OSError(f"{self._path}: {key} is of type {dtype}, not F32")
        with self._path.open("rb") as raw:  # the library reads all of a tensor for every slice of it
            raw.seek(self._begins[key] + 4 * start)
            for piece in torch.split(place, CHUNK_ELEMENTS):
                direct = piece.device.type == "cpu" and piece.dtype == torch.float32 and piece.is_contiguous()
                host = piece if direct else torch.empty(piece.numel())
                if raw.readinto(host.view(torch.uint8).numpy().data) != host.nbytes:
                    raise OSError(f"{self._path} ends within {key}")
                if not direct:
                    piece.copy_(host)

    @cached_property
    def _begins(self) -> dict[str, int]:
        """Where each tensor's bytes begin in the file."""
        with self._path.open("rb") as raw:
            length = int.from_bytes(raw.read(8), "little")
            header = json.loads(raw.read(length))
        return {name: 8 + length + entry["data_offsets"][0] for name, entry in header.items() if name[:2] != "__"}

    def shape(self, key: str) -> tuple[int, ...]:
        """A tensor's shape, from the file's header."""
        return tuple(self._file.get_slice(key).get_shape())  # type: ignore[no-untyped-call]

    def dtype(self, key: str) -> str:
        """A tensor's type as safetensors calls it, such as F32, from the file's header."""
        return str(self._file.get_slice(key).get_dtype())  # type: ignore[no-untyped-call]

    def pieces(self, key: str) -> Iterator[Tensor]:
        """A 1-D tensor in float32 piece by piece, for what needs to see all of it but not at once."""
        (numel,) = self.shape(key)
        for start in range(0, numel, CHUNK_ELEMENTS):
            piece = torch.empty(min(CHUNK_ELEMENTS, numel - start))
            self.read_into(piece, key, start)
            yield piece


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> tuple[int, str]:
    """Write named tensors, of which live views are not copied; returns bytes and XXH3-128 when they are on disk.

    Raises OSError, with ENOSPC for a full disk. The file is a safetensors file: the length of the header in eight
    bytes, the header in JSON, the tensors' bytes. The library's own writer can neither hash nor wait for the disk,
    and what it writes would have to be read back for both.
    """
    return write_hashed(path, (memoryview(piece) for piece in _pieces(tensors, metadata)))


def _pieces(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None) -> Iterator[Any]:
    entries: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        entries[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)  # tensors begin at a multiple of eight bytes
    yield len(header).to_bytes(8, "little")
    yield header
    for tensor in tensors.values():
        yield tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


@contextmanager
def open_tensors(path: Path) -> Iterator[TensorReader]:
    """Open a file for reading by name and range."""
    with safe_open(path, framework="pt", backend="pread") as file:
        yield TensorReader(file, path)


def stored_tensors(path: Path, backend: Literal["mmap", "pread"] = "mmap") -> dict[str, Stored]:
    """The tensors of a file, each read when it is asked for: out of the mapped file, or, with pread, into memory.

    Raises WeightsError if the file is not whole.
    """
    if path.exists() and not os.access(path, os.R_OK):
        raise WeightsError(f"{path} may not be read by this user; change its permissions")
    try:
        file = safe_open(path, framework="pt", backend=backend)
        return {name: _stored(file, path, name) for name in file.keys()}  # type: ignore[no-untyped-call]  # noqa: SIM118
    except FileNotFoundError:
        raise WeightsError(f"{path} is missing; copy it again") from None
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is cut short or no safetensors file ({error}); copy it again") from None


def indexed_tensors(index: Path, open_file: Callable[[Path], Tensors] = stored_tensors) -> dict[str, Stored]:
    """The tensors of several files with an index. Raises WeightsError where the two do not agree."""
    try:
        files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        parts = {file: open_file(index.with_name(Path(file).name)) for file in sorted(set(files.values()))}
        return {name: parts[file][name] for name, file in files.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{index} cannot be read ({error}); copy it again") from None
    except KeyError as error:
        raise WeightsError(f"{index} and its files do not agree about {error}; copy them again") from None


def pack(sizes: Mapping[T, int], most: int) -> list[list[T]]:
    """What has these sizes in groups of at most so much, in its order; one that is larger by itself stands alone."""
    groups: list[list[T]] = []
    filled = 0
    for name, size in sizes.items():
        if not groups or filled + size > most:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return groups


def _stored(file: safe_open, path: Path, name: str) -> Stored:
    shape = tuple(file.get_slice(name).get_shape())  # type: ignore[no-untyped-call]
    return Stored(shape, lambda: floats(f"{path}: {name}", file.get_tensor(name)))  # type: ignore[no-untyped-call]
