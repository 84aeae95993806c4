"""Units are cut by the source alone, and a unit's files follow from its documents."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from gptscale.config.data import DataConfig
from gptscale.config.schema import Config
from gptscale.data import embedded, side
from gptscale.data import unit as module
from gptscale.data.embedded import TextList
from gptscale.data.manifest import Settings, ShardEntry
from gptscale.data.shard import open_shard, read_starts
from gptscale.data.tokenizer import load_tokenizer
from gptscale.data.unit import (
    Unit,
    cut_units,
    finished,
    read_receipt,
    read_receipts,
    receipt_path,
    remove_unit,
    write_unit,
)

TEXTS = ["ab", "", "c", "dé"]
SOURCE = TextList(TEXTS, {})
TOKENIZER = load_tokenizer("bytes")
SETTINGS = Settings(
    tokenizer=TOKENIZER.identity,
    dtype="uint16",
    end_of_text=256,
    split="tail",
    validation_fraction=0.5,
    split_seed=0,
    documents_per_shard=4,
    source={},
)
WHOLE = Unit(0, 0, 4)
EOT = 256


@pytest.fixture
def cfg(tmp_path: Path, make_config: Callable[..., Config]) -> Config:
    (tmp_path / "corpus").mkdir()
    return make_config("x", data={"split": "tail", "validation_fraction": 0.5})


def make(cfg: Config, unit: Unit = WHOLE) -> tuple[ShardEntry, ...]:
    return write_unit(unit, SOURCE, TOKENIZER, cfg.data, SETTINGS).seal().shards


def all_train(cfg: Config) -> DataConfig:
    return cfg.data.model_copy(update={"validation_fraction": 0.0})


def test_units_cover_the_documents_and_only_the_last_is_short() -> None:
    def units(documents: int) -> list[Unit]:
        return cut_units(TextList(["x"] * documents, {}), 4)

    assert units(10) == [Unit(0, 0, 4), Unit(1, 4, 8), Unit(2, 8, 10)]
    assert units(4) == [Unit(0, 0, 4)]
    assert units(0) == []


def test_every_text_follows_an_end_of_text_and_empty_ones_leave_nothing(cfg: Config) -> None:
    # tail 0.5: "ab" gives a and b, "c" gives nothing and c, "dé" gives d and é (two bytes)
    train, val = make(cfg)
    assert open_shard(cfg.data.dir / train.file).tolist() == [EOT, ord("a"), EOT, ord("d")]
    assert open_shard(cfg.data.dir / val.file).tolist() == [EOT, ord("b"), EOT, ord("c"), EOT, 0xC3, 0xA9]
    assert (train.documents, train.tokens, train.text_bytes) == (2, 4, 2)
    assert (val.documents, val.tokens, val.text_bytes) == (3, 7, 4)
    assert (train.file, val.file) == ("train-00000.bin", "val-00000.bin")


def test_document_starts_name_the_sources_rows(cfg: Config) -> None:
    train, val = make(cfg)
    assert read_starts(cfg.data.dir / train.file).tolist() == [[0, 0], [2, 3]]
    assert read_starts(cfg.data.dir / val.file).tolist() == [[0, 0], [2, 2], [4, 3]]


def test_a_side_without_text_has_no_file(cfg: Config) -> None:
    assert [shard.split for shard in make(cfg, Unit(5, 2, 3))] == ["val"]
    assert make(cfg, Unit(6, 1, 2)) == ()
    files = {path.name for path in cfg.data.dir.iterdir()}
    assert files == {"val-00005.bin", "val-00005.starts.npy", "unit-00005.json", "unit-00006.json"}


def test_the_size_of_batches_changes_nothing(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = make(cfg)
    monkeypatch.setattr(embedded, "_BATCH_ROWS", 3)
    monkeypatch.setattr(module, "BATCH_BYTES", 1)
    assert make(cfg) == expected


def test_more_tokens_than_a_shard_can_count_go_on_in_the_next(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    one_train, one_val = make(cfg)
    monkeypatch.setattr(module, "BATCH_BYTES", 1)
    monkeypatch.setattr(side, "_FEW_BYTES", 1)
    monkeypatch.setattr(side, "MOST_TOKENS", 6)  # so "b" and "c", 4 tokens, leave no room for "é", which has 3
    train, first, second = make(cfg)
    assert train == one_train
    assert (first.file, second.file) == ("val-00000.bin", "val-00000-1.bin")
    assert open_shard(cfg.data.dir / first.file).tolist() == [EOT, ord("b"), EOT, ord("c")]
    assert open_shard(cfg.data.dir / second.file).tolist() == [EOT, 0xC3, 0xA9]
    assert read_starts(cfg.data.dir / second.file).tolist() == [[0, 3]]
    assert [(shard.documents, shard.text_bytes) for shard in (first, second)] == [(2, 2), (1, 2)]
    receipt = finished(cfg.data.dir, WHOLE, SETTINGS.key)
    assert receipt is not None
    assert receipt.shards == (train, first, second)
    other = make(cfg, Unit(10, 0, 4))
    remove_unit(cfg.data.dir, 0)
    left = {path.name for path in cfg.data.dir.glob("*.bin")}
    assert left == {shard.file for shard in other} == {"train-00010.bin", "val-00010.bin", "val-00010-1.bin"}
    assert sum(shard.tokens for shard in (first, second)) == one_val.tokens


def test_documents_of_a_later_batch_start_behind_those_before(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_BYTES", 4)
    monkeypatch.setattr(side, "_FEW_BYTES", 1)  # two and two of the documents are encoded at once
    monkeypatch.setattr(side, "MOST_TOKENS", 12)  # which they have, with an end of text each
    source = TextList(["ab", "cd", "ef", "gh"], {})
    (train,) = write_unit(WHOLE, source, TOKENIZER, all_train(cfg), SETTINGS).seal().shards
    assert read_starts(cfg.data.dir / train.file).tolist() == [[0, 0], [3, 1], [6, 2], [9, 3]]


def test_the_longest_documents_are_named(cfg: Config) -> None:
    source = TextList(["abc", "a", "abcde", "ab", "abc"], {})
    (train,) = write_unit(Unit(0, 0, 5), source, TOKENIZER, all_train(cfg), SETTINGS).seal().shards
    assert train.longest == ((6, 2), (4, 0), (4, 4))  # tokens with the end of text; the first of equals


def test_a_finished_unit_is_known_by_its_receipt(cfg: Config) -> None:
    shards = make(cfg)
    receipt = finished(cfg.data.dir, WHOLE, SETTINGS.key)
    assert receipt is not None
    assert (receipt.shards, receipt.documents, receipt.left_out) == (shards, 4, 0)
    assert finished(cfg.data.dir, WHOLE, "another key") is None
    assert finished(cfg.data.dir, Unit(1, 4, 8), SETTINGS.key) is None


@pytest.mark.parametrize("name", ["train-00000.bin", "train-00000.starts.npy", "unit-00000.json"])
def test_a_unit_with_a_missing_file_is_not_finished(cfg: Config, name: str) -> None:
    make(cfg)
    os.remove(cfg.data.dir / name)
    assert finished(cfg.data.dir, WHOLE, SETTINGS.key) is None


@pytest.mark.parametrize("name", ["train-00000.bin", "val-00000.starts.npy"])
def test_a_unit_with_a_flipped_bit_is_not_finished(cfg: Config, name: str) -> None:
    make(cfg)
    content = bytearray((cfg.data.dir / name).read_bytes())
    content[-1] ^= 1
    (cfg.data.dir / name).write_bytes(content)
    assert finished(cfg.data.dir, WHOLE, SETTINGS.key) is None


def test_a_damaged_receipt_is_none(cfg: Config) -> None:
    make(cfg)
    path = receipt_path(cfg.data.dir, 0)
    path.write_text(path.read_text()[:-5])
    assert read_receipt(path) is None


def test_a_receipt_with_another_digit_and_one_of_another_unit_are_none(cfg: Config) -> None:
    make(cfg)
    path, other = (receipt_path(cfg.data.dir, number) for number in (0, 1))
    content = path.read_text()
    other.write_text(content)
    assert read_receipt(other) is None
    assert '"documents":2,' in content
    path.write_text(content.replace('"documents":2,', '"documents":3,'))
    assert read_receipt(path) is None


def test_a_receipt_that_is_older_than_digests_is_taken(cfg: Config) -> None:
    make(cfg)
    path = receipt_path(cfg.data.dir, 0)
    fields = json.loads(path.read_text())
    del fields["digest"]
    path.write_text(json.dumps(fields))
    assert finished(cfg.data.dir, WHOLE, SETTINGS.key) == read_receipt(path)
    assert read_receipt(path) is not None


def test_a_receipt_of_fewer_fields_is_whole_under_its_own_digest(cfg: Config) -> None:
    make(cfg)
    path = receipt_path(cfg.data.dir, 0)
    fields = json.loads(path.read_text())
    del fields["digest"], fields["left_out"]  # as if this version had been the first to write it
    said = json.dumps(["unit-00000.json", fields], sort_keys=True, separators=(",", ":"))
    path.write_text(json.dumps({**fields, "digest": hashlib.sha256(said.encode()).hexdigest()}))
    assert finished(cfg.data.dir, WHOLE, SETTINGS.key) == read_receipt(path)
    assert read_receipt(path) is not None


def test_receipts_are_found_by_their_numbers_and_other_files_are_not_ours(cfg: Config) -> None:
    make(cfg)
    (cfg.data.dir / "unit-00007.json").write_text("{")
    (cfg.data.dir / "unit-test.json").write_text("{}")
    found = read_receipts(cfg.data.dir)
    assert found == {0: read_receipt(receipt_path(cfg.data.dir, 0)), 7: None}
    assert found[0] is not None


def test_removing_a_unit_leaves_nothing_of_it(cfg: Config) -> None:
    make(cfg)
    make(cfg, Unit(5, 2, 3))
    remove_unit(cfg.data.dir, 0)
    assert {path.name[-10:] for path in cfg.data.dir.iterdir()} == {"-00005.bin", "starts.npy", "00005.json"}
