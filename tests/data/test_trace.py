"""A sample's documents are those that a reader of the bare shard files finds."""

from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptscale.data import corpus as corpora
from gptscale.data.corpus import open_corpus
from gptscale.data.loader import StepLoader
from gptscale.data.manifest import load_manifest
from gptscale.data.prepare import prepare
from gptscale.data.sampler import Sampler, count_samples
from gptscale.data.tokenizer import load_tokenizer
from gptscale.data.trace import Documents, TracedSample, trace_positions
from gptscale.errors import DataError
from tests.data.conftest import MakeConfig

CONTEXT = 11
LINES = ["x" * n if n % 3 else "é" * n for n in (1, 2, 30, 3, 1, 1, 17, 4, 9, 40, 1, 6, 2, 25, 8, 8, 3)]
"""With an end-of-text token each; units of 3 lines make 6 shards, one of them shorter than a sample."""


def reference(folder: Path, start: int, stop: int) -> list[tuple[str, int, int, int, list[int]]]:
    """Shard, offset, document, row and tokens of a stretch, from the bytes of the shard files."""
    tokens: list[tuple[str, int, int, int, int]] = []
    for path in sorted(folder.glob("train-*.bin")):
        values = np.fromfile(path, "<u2", offset=1024)
        starts = np.load(path.with_suffix(".starts.npy")).tolist()
        for at, value in enumerate(values.tolist()):
            document = max(d for d, (first, _) in enumerate(starts) if first <= at)
            tokens.append((path.name, document, starts[document][1], at, value))
    found = []
    for (shard, document, row), group in groupby(tokens[start:stop], key=lambda t: t[:3]):
        stretch = list(group)
        found.append((shard, stretch[0][3], document, row, [value for *_, value in stretch]))
    return found


@pytest.fixture
def folder(make_config: MakeConfig, tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text("\n".join(LINES))
    cfg = make_config(
        tmp_path / "text.txt", data={"dir": tmp_path / "corpus", "tokenizer": "bytes", "documents_per_shard": 3,
                                     "validation_fraction": 0.0, "source": {"path": str(tmp_path / "text.txt"), "documents": "line"}}
    )  # fmt: skip
    prepare(cfg, say=lambda line: None)
    assert len(list(cfg.data.dir.glob("train-*.bin"))) == 6
    return cfg.data.dir


def traced(folder: Path, stride: int, positions: Any) -> list[TracedSample]:
    corpus = open_corpus(folder)
    sampler = Sampler(count_samples(len(corpus.train), CONTEXT, stride), stride, 5)
    documents = Documents([(folder, corpus)], load_tokenizer("bytes"))
    return list(trace_positions(sampler, documents, np.asarray(positions), CONTEXT))


@pytest.mark.parametrize("stride", [1, 4, CONTEXT, 20])
def test_documents_shards_and_texts_are_those_in_the_files(folder: Path, stride: int) -> None:
    tokenizer = load_tokenizer("bytes")
    samples = count_samples(len(open_corpus(folder).train), CONTEXT, stride)
    whole = traced(folder, stride, range(samples))
    assert sorted(s.sample for s in whole) == list(range(samples))
    for sample in whole:
        assert (sample.start, sample.stop) == (sample.sample * stride, sample.sample * stride + CONTEXT + 1)
        expected = reference(folder, sample.start, sample.stop)
        assert [
            (p.shard, p.offset, p.document, p.row, p.tokens, p.text) for p in sample.pieces
        ] == [(shard, at, doc, row, len(ids), tokenizer.decode(ids)) for shard, at, doc, row, ids in expected]  # fmt: skip
        for piece, (*_, ids) in zip(sample.pieces, expected, strict=True):
            document = [256, *LINES[piece.row].encode()]  # an end-of-text token stands before
            assert ids == document[piece.skipped : piece.skipped + piece.tokens]
    if stride == 1:  # every border of a document or shard is inside some sample
        assert max(len(s.pieces) for s in whole) >= 4
        assert {p.shard for s in whole for p in s.pieces if p.offset == 0} == {f"train-{i:05d}.bin" for i in range(6)}


@pytest.mark.parametrize("stride", [4, CONTEXT])
def test_a_step_is_traced_to_the_tokens_that_training_reads(folder: Path, stride: int) -> None:
    corpus = open_corpus(folder)
    steps, sequences = 13, 5  # runs into the second epoch and beyond
    with StepLoader(
        corpus.train, sampler=Sampler(count_samples(len(corpus.train), CONTEXT, stride), stride, 5), context_length=CONTEXT, sequences_per_step=sequences,
        micro_batch_sequences=sequences, rank=0, world=1, total_steps=steps,
    ) as loader:  # fmt: skip
        for step in range(steps):
            (batch,) = loader.next_step()
            read = np.concatenate([batch.inputs.numpy(), batch.targets.numpy()[:, -1:]], axis=1)
            samples = traced(folder, stride, range(step * sequences, (step + 1) * sequences))
            for row, sample in zip(read.tolist(), samples, strict=True):
                assert [t for _, _, _, _, ids in reference(folder, sample.start, sample.stop) for t in ids] == row
                assert sum(p.tokens for p in sample.pieces) == CONTEXT + 1
    assert samples[-1].epoch == (steps * sequences - 1) // count_samples(len(corpus.train), CONTEXT, stride) > 0


def test_a_piece_says_how_much_of_its_document_came_before(folder: Path) -> None:
    (sample,) = (s for s in traced(folder, 1, range(100)) if s.start == 9)
    # lines of 1, 2 and 30 x or é: tokens 0-1, 2-4 and, since 30 é are 60 bytes, 5-65; so token 9 is its fifth
    (piece,) = sample.pieces
    assert (piece.document, piece.row, piece.offset, piece.skipped, piece.tokens) == (2, 2, 9, 4, 12)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damaged_document_starts_of_a_large_corpus_are_one_line(
    damage: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpora, "HASHED_BYTES", 0)  # of larger ones nothing is hashed when they are opened
    path = folder / "train-00001.starts.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if damage == "flip" else content[:9])
    if damage == "remove":
        path.unlink()
    said = "is missing" if damage == "remove" else "is damaged in its bytes"
    with pytest.raises(DataError, match=rf"^document starts {path} {said}[^\n]*; run prepare again[^\n]*$"):
        traced(folder, 1, range(20))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ({"kind": "text", "files": [{"name": "a", "bytes": 1}]}, "the source"),
        ({"streaming": True, "files": [{"name": n, "bytes": b} for n, b in [("a", 1), ("b", 0), ("c", 2)]]}, "c"),
        ({"streaming": True, "kind": "hub"}, "file 2 of the source"),
    ],
)
def test_the_rows_of_a_streamed_corpus_are_those_of_a_file(source: dict[str, Any], expected: str, folder: Path) -> None:
    manifest = load_manifest(folder)
    manifest.model_copy(update={"settings": manifest.settings.model_copy(update={"source": source})}).save(folder)
    found = {piece.shard: piece.rows_of for sample in traced(folder, 1, range(20)) for piece in sample.pieces}
    assert found["train-00001.bin"] == expected
