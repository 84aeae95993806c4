"""A corpus is made once, mended where it is damaged, and never mixed with another."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptscale.config.data import SourceConfig
from gptscale.config.schema import Config
from gptscale.data import job as module
from gptscale.data import unit
from gptscale.data.corpus import check_corpus, open_corpus
from gptscale.data.embedded import TextList
from gptscale.data.job import open_job
from gptscale.data.manifest import load_manifest
from gptscale.data.prepare import finish, prepare, prepare_task
from gptscale.data.split import is_held_out
from gptscale.data.tokenizer import load_tokenizer
from gptscale.disk import this_host
from gptscale.errors import DataError
from tests.data.conftest import MakeConfig

LINES = [f"line {i}" for i in range(20)]
Make = Callable[..., Config]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "x.txt").write_text("\n".join(LINES))
    return tmp_path / "x.txt"


@pytest.fixture
def cfg(text: Path, make_config: Make) -> Config:
    return make_config(text, data={"validation_fraction": 0.3, "documents_per_shard": 6})


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def run(cfg: Config) -> list[str]:
    said: list[str] = []
    prepare(cfg, said.append)
    return said


def verbs(said: list[str]) -> list[str]:
    """Whether each unit was made or reused, in the order in which they were done."""
    return [line.split()[2] for line in said if line.startswith("unit")]


def kill_after_two_units(cfg: Config) -> None:
    real, made = module.write_unit, []

    def make_two(unit: Any, *rest: Any) -> Any:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(unit.number)
        return real(unit, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "write_unit", make_two)
        with pytest.raises(KeyboardInterrupt):
            run(cfg)


def test_the_corpus_is_the_documents_in_order_each_after_an_end_of_text(cfg: Config) -> None:
    manifest = prepare(cfg, lambda line: None)
    assert manifest == load_manifest(cfg.data.dir)
    held = [is_held_out(line.encode(), 0, 0.3) for line in LINES]
    corpus = open_corpus(cfg.data.dir)
    for stream, wanted in [(corpus.train, False), (corpus.val, True)]:
        lines = [line for line, val in zip(LINES, held, strict=True) if val == wanted]
        expected = [token for line in lines for token in (256, *line.encode())]
        assert stream.read(0, len(stream)).tolist() == expected


def test_without_end_of_text_the_documents_touch(text: Path, make_config: Make) -> None:
    cfg = make_config(text, data={"validation_fraction": 0, "end_of_text": False})
    prepare(cfg, lambda line: None)
    train = open_corpus(cfg.data.dir).train
    assert bytes(train.read(0, len(train)).tolist()).decode() == "".join(LINES)


def test_a_book_is_cut_into_its_first_and_last_characters(tmp_path: Path, make_config: Make) -> None:
    book = "It was a dark and stormy night; " * 40  # 1280 characters
    (tmp_path / "book.txt").write_text(book)
    data = {"tokenizer": "gpt2", "split": "tail", "validation_fraction": 0.1, "end_of_text": False}
    cfg = make_config(tmp_path / "book.txt", data=data, source={"documents": "file"})
    manifest = prepare(cfg, lambda line: None)
    corpus, gpt2 = open_corpus(cfg.data.dir), load_tokenizer("gpt2")
    assert corpus.train.read(0, len(corpus.train)).tolist() == gpt2.encode(book[:1152])
    assert corpus.val.read(0, len(corpus.val)).tolist() == gpt2.encode(book[1152:])
    assert manifest.settings.dtype == "uint16"


def test_tokenizers_beyond_65536_ids_make_wider_shards(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_tokenizer("bytes")
    monkeypatch.setattr(tokenizer, "n_vocab", 65_537)
    monkeypatch.setattr(tokenizer, "end_of_text", 65_536)
    monkeypatch.setattr(module, "load_tokenizer", lambda *name: tokenizer)
    assert prepare(cfg, lambda line: None).settings.dtype == "uint32"
    assert open_corpus(cfg.data.dir).train.read(0, 2).tolist() == [65_536, ord("l")]


def test_what_is_said_ends_with_sizes_split_and_fingerprint(cfg: Config) -> None:
    said = run(cfg)
    manifest = load_manifest(cfg.data.dir)
    assert said[0].startswith("disk: about ")
    assert said[1].startswith("unit 1: wrote train-00000.bin (")
    held = [line for line in LINES if is_held_out(line.encode(), 0, 0.3)]
    size = sum(map(len, held))
    assert said[2 + 4] == f"val: {len(held)} documents, {size} bytes, {size + len(held)} tokens"
    assert said[-2] == "split: hash, 0.3 for validation (seed 0, by document)"
    assert said[-1] == f"fingerprint: {manifest.fingerprint}"


def test_a_corpus_whose_documents_were_held_out_in_another_way_is_read_but_not_added_to(cfg: Config) -> None:
    manifest = prepare(cfg, lambda line: None)
    older = manifest.settings.model_copy(update={"format_version": 1})  # which held out by BLAKE2b
    manifest.model_copy(update={"settings": older}).save(cfg.data.dir)
    with pytest.raises(DataError, match=r"holds another corpus \(format_version 1 there, 2 here\)"):
        prepare(cfg, lambda line: None)
    assert open_corpus(cfg.data.dir).manifest.fingerprint == manifest.fingerprint


def test_a_whole_corpus_is_reused_and_nothing_is_written(cfg: Config) -> None:
    run(cfg)
    before = snapshot(cfg.data.dir)
    assert verbs(run(cfg)) == ["reusing"] * 4
    assert snapshot(cfg.data.dir) == before


def test_a_corpus_may_move_with_its_text(cfg: Config, text: Path, tmp_path: Path, make_config: Make) -> None:
    run(cfg)
    (tmp_path / "elsewhere").mkdir()
    text.rename(tmp_path / "elsewhere" / "x.txt")
    moved = make_config(tmp_path / "elsewhere" / "x.txt", data=cfg.data.model_dump(include=SETTLED))
    assert set(verbs(run(moved))) == {"reusing"}


@pytest.mark.parametrize("damage", ["delete", "flip"])
@pytest.mark.parametrize("name", ["train-00002.bin", "train-00002.starts.npy"])
def test_only_a_damaged_unit_is_made_again(cfg: Config, name: str, damage: str) -> None:
    run(cfg)
    before = snapshot(cfg.data.dir)
    shard = cfg.data.dir / name
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content) if damage == "flip" else shard.unlink()
    assert verbs(run(cfg)) == ["reusing", "reusing", "wrote", "reusing"]
    assert {name: file[0] for name, file in snapshot(cfg.data.dir).items()} == {n: f[0] for n, f in before.items()}


def test_a_killed_preparation_goes_on_where_it_was(cfg: Config) -> None:
    run(cfg)
    whole = load_manifest(cfg.data.dir)
    for path in cfg.data.dir.iterdir():
        path.unlink()
    kill_after_two_units(cfg)
    with pytest.raises(DataError, match="holds no corpus"):
        load_manifest(cfg.data.dir)
    assert verbs(run(cfg)) == ["reusing", "reusing", "wrote", "wrote"]
    assert load_manifest(cfg.data.dir) == whole


def test_an_unfinished_corpus_of_other_settings_is_left_alone(cfg: Config, text: Path, make_config: Make) -> None:
    kill_after_two_units(cfg)
    before = snapshot(cfg.data.dir)
    other = make_config(text, data={"validation_fraction": 0.3, "documents_per_shard": 100})
    match = r"another corpus \(documents_per_shard 6 there, 100 here\); choose another data.dir, or delete that folder$"
    with pytest.raises(DataError, match=match):
        run(other)
    assert snapshot(cfg.data.dir) == before
    assert verbs(run(cfg)) == ["reusing", "reusing", "wrote", "wrote"]


def test_a_manifest_is_made_again_of_the_source_that_it_was_made_of(cfg: Config, monkeypatch: Any) -> None:
    """As a damaged one is, by the advice of its error; a Hub dataset may have moved on since."""
    run(cfg)
    whole = load_manifest(cfg.data.dir)
    (cfg.data.dir / "manifest.json").unlink()
    begun: list[Any] = []
    pinned = module._pinned
    monkeypatch.setattr(module, "_pinned", lambda source, was: begun.append(was) or pinned(source, was))
    assert set(verbs(run(cfg))) == {"reusing"}
    assert begun == [whole.settings]
    assert load_manifest(cfg.data.dir) == whole


def test_an_unfinished_corpus_of_settings_unknown_is_left_alone(cfg: Config, text: Path, make_config: Make) -> None:
    kill_after_two_units(cfg)
    (cfg.data.dir / "settings.json").unlink()
    before = snapshot(cfg.data.dir)
    match = r"holds units of another corpus, which is not finished .*; choose another data.dir, or delete that folder$"
    with pytest.raises(DataError, match=match):
        run(make_config(text, data={"validation_fraction": 0.2, "documents_per_shard": 6}))
    assert snapshot(cfg.data.dir) == before


def test_a_unit_with_a_damaged_receipt_is_made_again_under_any_settings(
    cfg: Config, text: Path, make_config: Make
) -> None:
    kill_after_two_units(cfg)
    for number in range(2):
        (cfg.data.dir / f"unit-0000{number}.json").write_text("{")
    run(make_config(text, data={"validation_fraction": 0.3, "documents_per_shard": 100}))
    names = {path.name for path in cfg.data.dir.glob("*.bin")}
    assert names == {"train-00000.bin", "val-00000.bin"}


def test_what_a_killed_preparation_was_writing_is_removed(cfg: Config) -> None:
    kill_after_two_units(cfg)
    (cfg.data.dir / f".train-00002.bin.{this_host()}.99999999.00ff00ff.tmp").write_bytes(b"half")
    run(cfg)
    assert not list(cfg.data.dir.glob(".*"))


def test_a_shard_that_no_receipt_names_is_removed_in_the_end(cfg: Config, text: Path, make_config: Make) -> None:
    kill_after_two_units(cfg)
    for number in range(2):  # as where the kills had come before the receipts
        (cfg.data.dir / f"unit-0000{number}.json").unlink()
    (cfg.data.dir / "train-00001-1.bin").touch()
    (cfg.data.dir / "train-own.bin").touch()
    other = make_config(text, data={"validation_fraction": 0.3, "documents_per_shard": 100})
    manifest = prepare(other, lambda line: None)
    found = {path.name for path in other.data.dir.glob("*.bin")}
    assert found == {"train-00000.bin", "val-00000.bin", "train-own.bin"}
    assert found == {shard.file for shard in manifest.shards} | {"train-own.bin"}
    assert len(list(other.data.dir.glob("*.npy"))) == 2


def test_receipts_are_read_once(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    kill_after_two_units(cfg)
    real, calls = module.read_receipts, []
    monkeypatch.setattr(module, "read_receipts", lambda folder: calls.append(folder) or real(folder))
    assert sorted(open_job(cfg.data).receipts) == [0, 1]
    assert len(calls) == 1


def test_a_checkpoint_is_left_alone(cfg: Config) -> None:
    cfg.data.dir.mkdir()
    (cfg.data.dir / "manifest.json").write_text('{"step": 1, "format": "gptscale-checkpoint-1"}')
    before = snapshot(cfg.data.dir)
    with pytest.raises(DataError, match=r"data.dir=.*corpus is a checkpoint, not a corpus"):
        run(cfg)
    assert snapshot(cfg.data.dir) == before


def test_text_that_changed_under_its_old_time_makes_another_corpus(text: Path, make_config: Make) -> None:
    texts = []
    for i, line in enumerate(["first text here", "other text here"]):
        text.write_text(line)
        os.utime(text, ns=(10**18, 10**18))
        cfg = make_config(
            text, data={"dir": text.parent / f"corpus{i}", "validation_fraction": 0, "end_of_text": False}
        )
        run(cfg)
        train = open_corpus(cfg.data.dir).train
        texts.append(bytes(train.read(0, len(train)).tolist()).decode())
    assert texts == ["first text here", "other text here"]


def test_a_folder_with_another_corpus_is_left_alone(cfg: Config, text: Path, make_config: Make) -> None:
    run(cfg)
    before = snapshot(cfg.data.dir)
    other = make_config(text, data={"split_seed": 9, "validation_fraction": 0.3, "documents_per_shard": 6})
    match = r"holds another corpus \(split_seed 0 there, 9 here\); choose another data.dir, or delete"
    with pytest.raises(DataError, match=match):
        run(other)
    text.write_text("other text")
    with pytest.raises(DataError, match=r"holds another corpus \(source: x.txt has changed\)"):
        run(cfg)
    assert snapshot(cfg.data.dir) == before


@pytest.mark.parametrize("task", [False, True])
def test_text_that_changes_while_it_is_prepared_makes_no_corpus(
    cfg: Config, text: Path, task: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.write_unit

    def change(*args: Any) -> Any:
        os.utime(text, ns=(10**18, 10**18))
        return real(*args)

    monkeypatch.setattr(module, "write_unit", change)
    with pytest.raises(DataError, match=rf"data.source.path={text}: {text} has changed since it was opened, so that"):
        prepare_task(cfg, 0, 2, lambda line: None) if task else run(cfg)
    assert not (cfg.data.dir / "manifest.json").exists()


@pytest.mark.parametrize("inside", ["", "corpus", "deep/corpus"])
def test_a_corpus_among_its_own_sources_is_refused(tmp_path: Path, make_config: Make, inside: str) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "x.jsonl").write_text('{"text": "x"}\n' * 99)
    (tmp_path / "link").symlink_to("text")
    cfg = make_config(tmp_path / "link", data={"dir": tmp_path / "text" / inside})
    with pytest.raises(DataError, match=r"data.dir=.*text.* lies inside data.source.path=.*link, all of which is read"):
        run(cfg)
    assert [path.name for path in (tmp_path / "text").iterdir()] == ["x.jsonl"]
    run(make_config(tmp_path / "text", data={"dir": tmp_path / "text-corpus"}))


@pytest.mark.parametrize(
    ("pattern", "found"),
    [("**", True), ("*/*.json", True), ("**/*.json", True), ("*.json", False), ("**/*.jsonl", False)],
)
def test_a_corpus_that_its_own_glob_would_find_is_refused(
    tmp_path: Path, make_config: Make, pattern: str, found: bool
) -> None:
    (tmp_path / "text" / "deep").mkdir(parents=True)
    for path in ("x.json", "x.jsonl", "deep/x.json", "deep/x.jsonl"):
        (tmp_path / "text" / path).write_text('{"text": "x"}\n' * 99)
    cfg = make_config(f"{tmp_path}/text/{pattern}", data={"dir": tmp_path / "text" / "corpus"})
    if found:
        with pytest.raises(
            DataError, match=r"data.source.path=.*text/.* matches files of data.dir=.*corpus too; choose"
        ):
            run(cfg)
    else:
        run(cfg)
        assert run(cfg)  # again, with its files there
    hidden = make_config(f"{tmp_path}/text/{pattern}", data={"dir": tmp_path / "text" / ".corpus"})
    assert [bool(run(hidden)) for _ in range(2)] == [True, True]  # which a glob does not look into


def test_files_that_are_passed_over_are_said_first(tmp_path: Path, make_config: Make) -> None:
    (tmp_path / "text").mkdir()
    for name in ("a.txt", "b.csv"):
        (tmp_path / "text" / name).write_text("x" * 99)
    said = run(make_config(tmp_path / "text", data={"validation_fraction": 0}))
    assert "1 of 2 files are passed over, such as" in said[0]


def test_empty_documents_alone_are_no_corpus(tmp_path: Path, make_config: Make) -> None:
    (tmp_path / "x.txt").write_text("\n\n\n")
    with pytest.raises(DataError, match=r"data.source.path=.*x.txt holds only empty documents"):
        run(make_config(tmp_path / "x.txt"))


def test_a_split_that_leaves_nothing_to_train_on_is_refused(tmp_path: Path, make_config: Make) -> None:
    (tmp_path / "x.txt").write_text("line 0")
    seed = next(s for s in range(100) if is_held_out(b"line 0", s, 0.5))
    cfg = make_config(tmp_path / "x.txt", data={"validation_fraction": 0.5, "split_seed": seed})
    match = r"nothing to train on: all 1 documents fell to validation; use data.split=tail.*fraction=0.5"
    with pytest.raises(DataError, match=match):
        run(cfg)
    assert not list(cfg.data.dir.iterdir())  # so that the mended settings may use the folder


@pytest.mark.parametrize(("fraction", "warned"), [(0.001, True), (0, False)])
def test_a_corpus_without_validation_is_told_where_some_was_asked_for(
    fraction: float, warned: bool, tmp_path: Path, make_config: Make
) -> None:
    (tmp_path / "x.txt").write_text("line 0, which is long enough for a step")
    cfg = make_config(tmp_path / "x.txt", data={"validation_fraction": fraction})
    said = run(cfg)
    assert any("WARNING: no document fell to validation" in line for line in said) == warned
    with pytest.raises(DataError, match=rf"validation split holds 0 tokens, .*_fraction={fraction}.*data.split=tail$"):
        check_corpus(open_corpus(cfg.data.dir), cfg)


def test_a_folder_that_cannot_be_made_is_named(text: Path, make_config: Make) -> None:
    with pytest.raises(DataError, match=r"data.dir=.*x.txt/corpus cannot be made: Not a directory"):
        run(make_config(text, data={"dir": text / "corpus"}))
    with pytest.raises(DataError, match=r"data.dir=.*xxx cannot be made: File name too long; choose another data.dir"):
        run(make_config(text, data={"dir": text.parent / ("x" * 300)}))


def test_a_corpus_from_the_hub_stays_at_its_revision(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []

    def open_source(source: SourceConfig) -> TextList:
        asked.append(source.revision)
        revision = source.revision or "newest"
        return TextList(LINES, {"path": source.path, "kind": "hub", "revision": revision})

    monkeypatch.setattr(module, "open_source", open_source)
    kill_after_two_units(cfg)
    run(cfg)
    run(cfg)
    assert asked == [None, "newest", "newest"]


def test_documents_of_other_lengths_are_left_out_and_counted(tmp_path: Path, make_config: Make) -> None:
    (tmp_path / "x.txt").write_text("a\nbbbb\n\nccc\nddddddd")
    source = {"min_characters": 2, "max_characters": 4}
    said: list[str] = []
    manifest = prepare(make_config(tmp_path / "x.txt", source=source, data={"validation_fraction": 0}), said.append)
    assert bytes(open_corpus(tmp_path / "corpus").train.read(0, 9).astype(np.uint8)) == b"\0bbbb\0ccc"
    assert manifest.left_out == 3
    assert "left out: 3 documents, too short or too long" in said
    with pytest.raises(DataError, match=r"another corpus \(source.min_characters 2 there, 3 here\)"):
        run(make_config(tmp_path / "x.txt", source={**source, "min_characters": 3}, data={"validation_fraction": 0}))


def test_what_every_batch_leaves_out_is_counted(
    tmp_path: Path, make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unit, "BATCH_BYTES", 1)
    (tmp_path / "x.txt").write_text("a\nlong enough\nb\nc\nand this one too")
    cfg = make_config(tmp_path / "x.txt", source={"min_characters": 5}, data={"validation_fraction": 0})
    assert prepare(cfg, lambda line: None).left_out == 3


def test_lengths_that_leave_nothing_are_refused(tmp_path: Path, make_config: Make) -> None:
    (tmp_path / "x.txt").write_text("a\nb")
    match = r"left out by data.source.min_characters=5; widen the limits"
    with pytest.raises(DataError, match=match):
        run(make_config(tmp_path / "x.txt", source={"min_characters": 5}))


def test_a_streamed_file_is_one_unit_and_a_mended_one_too(tmp_path: Path, make_config: Make) -> None:
    (tmp_path / "text").mkdir()
    for name in "abc":
        (tmp_path / "text" / f"{name}.txt").write_text("\n".join(f"{name}{i}" for i in range(5)))
    settings = {"validation_fraction": 0, "documents_per_shard": 2}
    cfg = make_config(tmp_path / "text", source={"streaming": True}, data=settings)
    manifest = prepare(cfg, lambda line: None)
    assert [(shard.file, shard.documents) for shard in manifest.shards] == [(f"train-0000{i}.bin", 5) for i in range(3)]
    (cfg.data.dir / "train-00001.bin").unlink()
    assert verbs(run(cfg)) == ["reusing", "wrote", "reusing"]
    assert open_corpus(cfg.data.dir).train.read(15, 3).tolist() == [256, ord("b"), ord("0")]


def test_copies_of_a_document_lie_on_one_side(tmp_path: Path, make_config: Make) -> None:
    (tmp_path / "x.txt").write_text("\n".join(LINES * 3))
    data = {"validation_fraction": 0.5, "documents_per_shard": 7}
    manifest = prepare(make_config(tmp_path / "x.txt", data=data), lambda line: None)
    documents = [sum(shard.documents for shard in manifest.of(split)) for split in ("train", "val")]
    assert np.all(np.array(documents) % 3 == 0)
    assert sum(documents) == 60


SETTLED = {"validation_fraction", "documents_per_shard"}


def test_a_corpus_is_not_finished_with_a_shard_that_was_cut_short(tmp_path: Path, make_config: MakeConfig) -> None:
    (tmp_path / "x.txt").write_text("one\ntwo\nthree\n")
    cfg = make_config(tmp_path / "x.txt", data={"documents_per_shard": 1, "validation_fraction": 0})
    prepare_task(cfg, 0, 1, lambda line: None)
    shard = cfg.data.dir / "train-00001.bin"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"1 of 3 units are not there: 1; run their tasks again"):
        finish(cfg, lambda line: None)
    assert not (cfg.data.dir / "manifest.json").exists()


def test_documents_that_were_cut_in_two_count_once(tmp_path: Path, make_config: Make) -> None:
    (tmp_path / "x.txt").write_text("aaaa\nbbbb\ncccc")
    said = run(make_config(tmp_path / "x.txt", data={"split": "tail", "validation_fraction": 0.25}))
    assert any("; 1/1 units, 3 documents, 18 tokens" in line for line in said)  # 12 of text, and 6 ends of text
    assert any(line.startswith("all: 3 documents, 18 tokens") for line in said)
