"""Shards are llm.c's, and damage to one is named."""

import struct
from pathlib import Path

import numpy as np
import pytest

from gptscale.data import shard as module
from gptscale.data.shard import ShardWriter, Tokens, open_shard, read_starts, starts_path
from gptscale.errors import DataError

STARTS = np.array([[0, 7], [2, 9]])


def write_shard(path: Path, tokens: Tokens, starts: np.ndarray) -> None:
    with ShardWriter(path, tokens.dtype.name) as writer:
        writer.append(tokens)
        writer.finish(starts)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "train-00000.bin"
    write_shard(path, np.array([1, 2, 65535], np.uint16), STARTS)
    return path


@pytest.mark.parametrize(
    ("dtype", "magic", "version", "code"), [("uint16", 20240520, 1, "H"), ("uint32", 20240801, 7, "I")]
)
def test_the_file_is_llm_cs_header_and_then_the_tokens(
    tmp_path: Path, dtype: str, magic: int, version: int, code: str
) -> None:
    write_shard(tmp_path / "a.bin", np.array([5, 6, 50256], dtype), STARTS)
    header = struct.pack("<256i", magic, version, 3, *[0] * 253)
    assert (tmp_path / "a.bin").read_bytes() == header + struct.pack(f"<3{code}", 5, 6, 50256)


def test_tokens_and_document_starts_come_back(shard: Path) -> None:
    tokens = open_shard(shard)
    assert (tokens.tolist(), tokens.dtype) == ([1, 2, 65535], np.uint16)
    assert isinstance(tokens, np.memmap)
    assert read_starts(shard).tolist() == [[0, 7], [2, 9]]


def test_a_shard_gets_its_name_last_of_all_and_from_what_is_on_disk(tmp_path: Path, on_disk: list[str]) -> None:
    write_shard(tmp_path / "a.bin", np.array([1, 2], np.uint16), STARTS)
    folder = f"sync {tmp_path.name}"
    assert on_disk == ["sync a.starts.npy~", "name a.starts.npy", folder, "sync a.bin~", "name a.bin", folder]


def test_a_shard_without_tokens_can_be_opened(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.bin", np.empty(0, np.uint32), np.empty((0, 2), np.int64))
    assert open_shard(tmp_path / "a.bin").tolist() == []
    assert read_starts(tmp_path / "a.bin").shape == (0, 2)


def test_starts_lie_beside_the_shard() -> None:
    assert starts_path(Path("corpus/val-00003.bin")) == Path("corpus/val-00003.starts.npy")


def test_a_shard_cut_short_says_how_many_bytes_are_missing(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:-1])  # 1024 + 3 * 2 = 1030
    with pytest.raises(DataError, match=r"has 1,029 bytes, but its header says 1,030; run prepare again"):
        open_shard(shard)


def test_a_shard_that_grew_is_refused_too(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes() + b"\0")
    with pytest.raises(DataError, match=r"has 1,031 bytes, but its header says 1,030"):
        open_shard(shard)


@pytest.mark.parametrize("content", [b"", b"x", b"\0" * 2000, struct.pack("<2i", 20240520, 7)])
def test_another_file_is_no_shard(shard: Path, content: bytes) -> None:
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"train-00000.bin is no token shard: it begins with magic"):
        open_shard(shard)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"shard .*gone.bin is missing; run prepare again"):
        open_shard(tmp_path / "gone.bin")


def test_more_tokens_than_the_header_counts_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_TOKENS", 2)
    with pytest.raises(DataError, match=r"would hold 3 tokens, .* holds 2 at most; one document is that long"):
        write_shard(tmp_path / "a.bin", np.zeros(3, np.uint16), STARTS)
    assert list(tmp_path.iterdir()) == []
