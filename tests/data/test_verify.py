"""Every byte of a corpus is compared with the manifest, and damage is named by its place."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from gptscale.config.schema import Config
from gptscale.data import blocks, side, verify
from gptscale.data.blocks import hash_blocks, wrong_range
from gptscale.data.manifest import load_manifest
from gptscale.data.prepare import prepare
from gptscale.data.verify import find_damage, verify_corpus
from gptscale.errors import DataError

CONTENT = bytes(range(250))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "a").write_bytes(CONTENT)
    return tmp_path / "a"


@pytest.mark.parametrize("read_bytes", [7, 10**6])
@pytest.mark.parametrize("size", [1, 100, 125, 249, 250, 251])
def test_a_file_has_a_hash_and_one_for_each_block_of_several(
    size: int, read_bytes: int, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "_READ_BYTES", read_bytes)
    pieces = [CONTENT[at : at + size] for at in range(0, 250, size)]
    expected = tuple(hashlib.sha256(piece).hexdigest() for piece in pieces) if size < 250 else ()
    assert hash_blocks(file, size) == (hashlib.sha256(CONTENT).hexdigest(), expected)


@pytest.mark.parametrize(("at", "expected"), [(0, (0, 100)), (99, (0, 100)), (100, (100, 200)), (249, (200, 250))])
def test_the_first_wrong_block_is_named_by_its_bytes(at: int, expected: tuple[int, int], file: Path) -> None:
    _, whole = hash_blocks(file, 100)
    file.write_bytes(CONTENT[:at] + b"\xff" + CONTENT[at + 1 :])
    assert wrong_range(file, whole, 100) == expected
    assert wrong_range(file, (), 100) == (0, 250)


@pytest.mark.parametrize(
    ("size", "expected"), [(150, (100, 150)), (200, (200, 200)), (260, (200, 260)), (350, (200, 300))]
)
def test_a_file_that_was_cut_or_grew_is_wrong_where_it_ends(size: int, expected: tuple[int, int], file: Path) -> None:
    _, whole = hash_blocks(file, 100)
    file.write_bytes((CONTENT + b"\xff" * 200)[:size])
    assert wrong_range(file, whole, 100) == expected


@pytest.fixture
def cfg(tmp_path: Path, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> Config:
    """A corpus of four units whose shards have blocks of 1,000 bytes."""
    monkeypatch.setattr(side, "hash_blocks", lambda path: hash_blocks(path, 1000))
    monkeypatch.setattr(verify, "wrong_range", lambda path, hashes: wrong_range(path, hashes, 1000))
    (tmp_path / "x.txt").write_text("\n".join(f"line {i} " * 30 for i in range(40)))
    cfg = make_config(tmp_path / "x.txt", data={"documents_per_shard": 10, "validation_fraction": 0.2})
    prepare(cfg, lambda line: None)
    return cfg


def damage(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_a_whole_corpus_is_read_to_its_last_byte_and_all_that_is_damaged_is_named(cfg: Config) -> None:
    assert find_damage(cfg.data.dir) == []
    files = sorted(path for path in cfg.data.dir.iterdir() if path.suffix in (".bin", ".npy"))
    for path in files:
        damage(path, -1)
    problems = find_damage(cfg.data.dir)
    assert len(problems) == len(files)
    assert all(sum(f"{path} is damaged in its bytes" in problem for problem in problems) == 1 for path in files)


def test_the_first_damaged_file_and_its_bytes_are_named(cfg: Config) -> None:
    files = [shard.file for shard in load_manifest(cfg.data.dir).of("train")]
    for name, at in [(files[3], 10), (files[1], 2345), (files[1], 3456)]:
        damage(cfg.data.dir / name, at)
    match = r"shard .*train-00001.bin is damaged in its bytes 2,000 to 3,000: its SHA-256 is .*, not the .* of manifest"
    with pytest.raises(DataError, match=match):
        verify_corpus(cfg.data.dir)


def test_a_missing_file_and_one_that_cannot_be_read_are_named(cfg: Config) -> None:
    path = cfg.data.dir / "train-00002.starts.npy"
    path.unlink()
    with pytest.raises(DataError, match=r"document starts .*train-00002.starts.npy is missing; run prepare again"):
        verify_corpus(cfg.data.dir)
    path.mkdir()
    with pytest.raises(DataError, match=r"starts .*train-00002.starts.npy cannot be read: Is a directory; run prepare"):
        verify_corpus(cfg.data.dir)


@pytest.mark.parametrize("added", [-1, 3])
def test_a_manifest_whose_tokens_were_changed_is_no_whole_corpus(cfg: Config, added: int) -> None:
    manifest = load_manifest(cfg.data.dir)
    first = manifest.shards[0]
    changed = first.model_copy(update={"tokens": first.tokens + added})
    manifest.model_copy(update={"shards": (changed, *manifest.shards[1:])}).save(cfg.data.dir)
    size = 1024 + 2 * first.tokens
    match = (
        rf"manifest.json says that shard .*train-00000.bin has {size + 2 * added:,} bytes, and it has {size:,}, with"
    )
    with pytest.raises(DataError, match=match):
        verify_corpus(cfg.data.dir)
    prepare(cfg, lambda line: None)  # which makes the manifest again
    assert load_manifest(cfg.data.dir) == manifest
    verify_corpus(cfg.data.dir)
