"""Manifests come back as they were, and their names follow from the tokens."""

import json
from pathlib import Path
from typing import Any

import pytest

from gptscale.data.manifest import Manifest, Settings, ShardEntry, load_manifest, load_settings
from gptscale.errors import DataError


def settings(**fields: Any) -> Settings:
    base: dict[str, Any] = {
        "tokenizer": {"name": "bytes", "ranks_sha256": "aa", "n_vocab": 257},
        "dtype": "uint16",
        "end_of_text": 256,
        "split": "hash",
        "validation_fraction": 0.1,
        "split_seed": 0,
        "documents_per_shard": 10,
        "source": {"path": "here/x.txt", "files": [{"name": "x.txt", "bytes": 3, "sha256": "bb"}]},
    }
    return Settings.model_validate({**base, **fields})


def entry(**fields: Any) -> ShardEntry:
    base = {"file": "train-00000.bin", "split": "train", "tokens": 9, "documents": 2, "text_bytes": 7}
    return ShardEntry.model_validate({**base, "sha256": "cc", "starts_sha256": "ee", **fields})


MANIFEST = Manifest(settings=settings(), shards=(entry(), entry(file="val-00000.bin", split="val")))


def test_a_manifest_comes_back_as_it_was(tmp_path: Path) -> None:
    MANIFEST.save(tmp_path)
    assert load_manifest(tmp_path) == MANIFEST


def test_shards_are_given_by_split() -> None:
    assert [shard.file for shard in MANIFEST.of("val")] == ["val-00000.bin"]


def test_the_fingerprint_is_of_the_tokens_not_of_their_place() -> None:
    elsewhere = settings(source={"path": "there"}, documents_per_shard=99)
    renamed = tuple(shard.model_copy(update={"file": "x.bin"}) for shard in MANIFEST.shards)
    assert Manifest(settings=elsewhere, shards=renamed).fingerprint == MANIFEST.fingerprint


@pytest.mark.parametrize(
    "other",
    [
        Manifest(settings=settings(), shards=(entry(sha256="dd"), MANIFEST.shards[1])),
        Manifest(settings=settings(), shards=MANIFEST.shards[::-1]),
        Manifest(settings=settings(), shards=MANIFEST.shards[:1]),
        Manifest(settings=settings(), shards=(entry(split="val"), MANIFEST.shards[1])),
        Manifest(settings=settings(tokenizer={"name": "gpt2"}), shards=MANIFEST.shards),
    ],
)
def test_the_fingerprint_changes_with_the_tokens(other: Manifest) -> None:
    assert other.fingerprint != MANIFEST.fingerprint


def test_the_key_is_of_everything_but_the_sources_path() -> None:
    files = settings().source["files"]
    assert settings(source={"path": "there", "files": files}).key == settings().key
    changes: list[dict[str, Any]] = [{"split_seed": 1}, {"end_of_text": None}, {"source": {"files": []}}]
    assert len({settings(**change).key for change in [{}, *changes]}) == 4


@pytest.mark.parametrize("place", ["nowhere", "file", "."])
def test_a_folder_without_manifest_says_to_prepare(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"data.dir=.* holds no corpus; run `gptscale prepare CONFIG`"):
        load_manifest(tmp_path / place)


def test_a_relative_folder_without_manifest_says_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"CONFIG`, or go to where that path begins, which is not {tmp_path}$"):
        load_manifest(Path("corpora/books"))


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [('"shards": [', '"shards": ', "as a whole"), ('"hash"', '"hush"', "settings.split"), ("starts_", "", "shards.0")],
)
def test_a_damaged_manifest_says_what_is_wrong(tmp_path: Path, old: str, new: str, where: str) -> None:
    MANIFEST.save(tmp_path)
    (tmp_path / "manifest.json").write_text((tmp_path / "manifest.json").read_text().replace(old, new))
    with pytest.raises(DataError, match=rf"manifest.json is no manifest of this version \({where}.*delete it"):
        load_manifest(tmp_path)


@pytest.mark.parametrize(
    ("old", "new"), [('"n_vocab": 257', '"n_vocab": 258'), ('"documents": 2', '"documents": 3'), ('"left_out": 0,', "")]
)
def test_a_manifest_that_was_changed_is_refused(tmp_path: Path, old: str, new: str) -> None:
    MANIFEST.save(tmp_path)
    path = tmp_path / "manifest.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match=r"manifest.json was changed after it was written; restore it from a copy, or"):
        load_manifest(tmp_path)


def test_a_manifest_of_before_there_were_digests_is_read(tmp_path: Path) -> None:
    MANIFEST.save(tmp_path)
    fields = json.loads((tmp_path / "manifest.json").read_text())
    del fields["digest"]
    (tmp_path / "manifest.json").write_text(json.dumps(fields))
    assert load_manifest(tmp_path) == MANIFEST


@pytest.mark.parametrize("text", ["", "{", "{}", '{"shards": []}', '{"settings": {"dtype": "x"}}', "[1]"])
def test_nobody_is_told_to_delete_a_file_that_is_no_corpus_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    match = r"manifest.json is not the manifest of a corpus \([^;]*\); choose another data.dir$"
    with pytest.raises(DataError, match=match):
        load_manifest(tmp_path)


@pytest.mark.parametrize(
    "text", ['{"step": 1, "format": "gptscale-checkpoint-1"}', '{\n"format":"gptscale-checkpoint-2"']
)
def test_a_checkpoint_is_called_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    match = r"data.dir=.* is a checkpoint, not a corpus; set data.dir to a corpus or to a new folder$"
    with pytest.raises(DataError, match=match):
        load_manifest(tmp_path)


def test_a_manifest_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(DataError, match=r"data.dir=.*: its manifest.json cannot be read: Is a directory"):
        load_manifest(tmp_path)


def test_settings_come_back_and_damaged_ones_are_none(tmp_path: Path) -> None:
    assert load_settings(tmp_path) is None
    settings().save(tmp_path)
    assert load_settings(tmp_path) == settings()
    (tmp_path / "settings.json").write_text("{")
    assert load_settings(tmp_path) is None
