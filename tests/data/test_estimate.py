"""The disk that a corpus needs is never more than a token for every byte, wherever its long documents stand."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gptscale.config.data import SourceConfig
from gptscale.config.schema import Config
from gptscale.data import estimate
from gptscale.data.embedded import TextList
from gptscale.data.estimate import estimate_need
from gptscale.data.job import open_job
from gptscale.data.prepare import prepare_task
from gptscale.data.sources import open_source
from gptscale.data.streamed import Streamed
from gptscale.errors import DataError

Make = Callable[..., Config]


def write(path: Path, texts: list[str]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"text": texts, "n": ["unread" * 9] * len(texts)}), path, row_group_size=100)
    elif path.suffix == ".arrow":
        datasets.Dataset.from_dict({"text": texts}).save_to_disk(path.parent / "saved")
        return path.parent / "saved"
    else:
        path.write_text("".join((json.dumps({"text": t}) if path.suffix == ".jsonl" else t) + "\n" for t in texts))
    return path


def needed(path: Path, make_config: Make, documents_per_shard: int = 1000) -> int:
    cfg = make_config(path, data={"documents_per_shard": documents_per_shard})
    job = open_job(cfg.data)
    need = estimate_need(job, job.units)
    assert need is not None
    return need.needed


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.arrow", "a.txt"])
@pytest.mark.parametrize("documents_per_shard", [300, 10**6])
def test_one_huge_document_at_the_beginning_is_not_taken_for_all(
    name: str, documents_per_shard: int, tmp_path: Path, make_config: Make
) -> None:
    texts = ["x" * 6_000_000] + ["tiny"] * 2000  # as bytes: a token of two bytes each, and 18 more for a document
    path = write(tmp_path / name, texts)
    written = 2 * sum(map(len, texts)) + 18 * len(texts)
    assert 0.5 * written < needed(path, make_config, documents_per_shard) < 1.05 * written


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
@pytest.mark.parametrize("step", [1, -1])
def test_documents_that_are_sorted_by_length_are_looked_at_all_over(
    name: str, step: int, tmp_path: Path, make_config: Make
) -> None:
    texts = ["x" * (2 * i) for i in range(2000)][::step]
    written = 2 * sum(map(len, texts)) + 18 * len(texts)
    assert 0.7 * written < needed(write(tmp_path / name, texts), make_config, 10**6) < 1.05 * written


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.txt"])
def test_every_source_says_what_its_texts_cannot_exceed(name: str, tmp_path: Path) -> None:
    texts = ["some", "ünïcode", "x" * 99]
    path, size = write(tmp_path / name, texts), len("".join(texts).encode())
    assert size <= most_bytes(path) < 5 * size
    if name != "a.txt":
        assert most_bytes(path, template="{text}, and again: {text}") >= 2 * size + 3 * len(", and again: ")
    assert TextList(texts, {}).most_bytes() >= size


def test_a_row_group_without_rows_is_passed_over(tmp_path: Path) -> None:
    with pq.ParquetWriter(tmp_path / "a.parquet", pa.schema([("text", pa.string())])) as writer:
        for texts in (["a", "b"], [], ["c"]):
            writer.write_table(pa.table({"text": pa.array(texts, pa.string())}))
    source = open_source(SourceConfig(path=str(tmp_path / "a.parquet")))
    assert not isinstance(source, Streamed)
    assert [text for batch in source.read(0, 3) for text in batch.to_pylist()] == ["a", "b", "c"]


def test_texts_that_repeat_are_read_in_small_batches(tmp_path: Path) -> None:
    texts = [str(i % 40) + "x" * 2000 for i in range(5000)]  # 10 MB, of which the file has 80 kB
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    source = open_source(SourceConfig(path=str(tmp_path / "a.parquet")))
    assert not isinstance(source, Streamed)
    sizes = [batch.nbytes for batch in source.read(0, len(texts))]
    assert sum(sizes) > 10**7
    assert max(sizes) < 3 * 10**6


def most_bytes(path: Path, **fields: str) -> int:
    source = open_source(SourceConfig.model_validate({"path": str(path), **fields}))
    assert not isinstance(source, Streamed)
    return source.most_bytes()


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
@pytest.mark.parametrize(("short", "long"), [(600, 120), (400, 50)])
def test_long_documents_behind_short_ones_count_by_their_rows(
    name: str, short: int, long: int, tmp_path: Path, make_config: Make
) -> None:
    texts = ["short"] * short + ["x" * 200_000 + str(i) for i in range(long)]
    written = 2 * sum(map(len, texts)) + 18 * len(texts)
    assert 0.5 * written < needed(write(tmp_path / name, texts), make_config, 10**6) < 1.5 * written


def test_a_task_needs_room_for_all(tmp_path: Path, make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.jsonl", ["x" * 100] * 1000)
    cfg = make_config(path, data={"documents_per_shard": 100})
    monkeypatch.setattr(estimate.shutil, "disk_usage", lambda folder: SimpleNamespace(free=120_000))  # of 218,000
    with pytest.raises(DataError, match=r"needs about 0.000218 GB, and 0.00012 GB are free"):
        prepare_task(cfg, 0, 10, lambda line: None)
    monkeypatch.setattr(estimate.shutil, "disk_usage", lambda folder: SimpleNamespace(free=240_000))
    said: list[str] = []
    prepare_task(cfg, 0, 10, said.append)
    assert any("to write by all tasks" in line for line in said)


def test_a_huge_document_of_words_counts_by_its_tokens(tmp_path: Path, make_config: Make) -> None:
    path = write(tmp_path / "a.jsonl", ["of the people " * 400_000] + ["a few of the words"] * 5000)
    cfg = make_config(path, data={"tokenizer": "gpt2"}, model={"vocab_size": 50257})
    job = open_job(cfg.data)
    need = estimate_need(job, job.units)
    assert need is not None
    assert 2 * (3 * 400_000) < need.needed < 1.2 * (2 * (3 * 400_000 + 6 * 5000) + 16 * 5000)


def test_what_other_tasks_have_half_written_is_room_for_them(
    tmp_path: Path, make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.jsonl", ["x" * 100] * 1000)
    cfg = make_config(path, data={"documents_per_shard": 100})
    cfg.data.folder.mkdir()
    (cfg.data.folder / ".train-00000.bin.elsewhere.1.0123abcd.tmp").write_bytes(bytes(100_000))
    monkeypatch.setattr(estimate.shutil, "disk_usage", lambda folder: SimpleNamespace(free=120_000))  # of 218,000
    said: list[str] = []
    prepare_task(cfg, 1, 10, said.append)
    assert any("0.000218 GB to write by all tasks, 0.00022 GB free" in line for line in said)
