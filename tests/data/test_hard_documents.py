"""Documents that break other pipelines have tiktoken's ids in the shard, and a worker's memory stays small."""

import gzip
import json
import random
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiktoken

from gptscale.config.load import dump_config
from gptscale.config.schema import Config
from gptscale.data import side, unit
from gptscale.data.bpe import GPT2_PATTERN, GPT2_RANKS, GPT2_RANKS_SHA256, BpeTokenizer, read_ranks
from gptscale.data.job import open_job
from gptscale.data.prepare import prepare
from gptscale.data.shard import open_shard, read_starts
from gptscale.data.texts import Texts, flat
from gptscale.data.tokenizer import load_tokenizer

Make = Callable[..., Config]
END = 50256
JUDGE = tiktoken.Encoding(
    "judge", pat_str=GPT2_PATTERN, mergeable_ranks=read_ranks(GPT2_RANKS, GPT2_RANKS_SHA256), special_tokens={}
)

HARD = [
    "<|endoftext|> in it <|endoftext|>",
    "half a pair \ud83d and the other \ude42, both \ud83d\ude42",
    " " * 50_000,
    "\t\n\r\n  \u3000\xa0 \u2028" * 40,
    "🙂‍↔️👩‍👩‍👧‍👦🇳🇱 e\u0301",
    "שלום עולם مرحبا بالعالم \u202eabc\u202c",
    "nul \x00\x00 and \x7f \ufeff",
    "word " * 40_000 + "end",
    "x" * 100_000,
    "12345678901234567890 ½ ٣ I'll you'VE",
]


def tokens_by_document(cfg: Config) -> list[list[int]]:
    shard = cfg.data.dir / "train-00000.bin"
    tokens, starts = open_shard(shard), read_starts(shard)[:, 0]
    assert (tokens[starts] == END).all()
    return [piece[1:].tolist() for piece in np.split(tokens, starts[1:])]


@pytest.mark.parametrize("engine", ["gigatoken", "tiktoken"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_hard_documents_have_tiktokens_ids(
    name: str, engine: str, tmp_path: Path, make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [text for text in HARD if not name.endswith(("gz", "parquet")) or "\ud83d" not in text]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    if name.endswith("parquet"):
        pq.write_table(pa.table({"text": texts}), tmp_path / name)
    else:
        (tmp_path / name).write_bytes(gzip.compress(lines) if name.endswith("gz") else lines)
    for module in (unit, side):
        monkeypatch.setattr(module, "BATCH_BYTES", 10_000)  # long documents are cut on their way to the tokenizer
    data = {"tokenizer": "gpt2", "tokenizer_engine": engine, "validation_fraction": 0}
    cfg = make_config(tmp_path / name, data=data, model={"vocab_size": 50257})
    prepare(cfg, lambda line: None)
    assert tokens_by_document(cfg) == [JUDGE.encode_ordinary(text) for text in texts]


def test_a_cut_text_has_the_ids_of_the_whole() -> None:
    gpt2, letters = load_tokenizer("gpt2"), random.Random(0)
    cuts = 0
    for _ in range(300):
        text = "".join(letters.choice(["a", "Bc", " ", "  ", "\n", "é", "1", "'s", ".", "\t", "ll"]) for _ in range(80))
        content = np.frombuffer(text.encode(), np.uint8)
        borders = [0, *gpt2.cuts(content, 5), len(content)]
        pieces = [bytes(content[a:b]).decode() for a, b in pairwise(borders)]
        assert [i for piece in pieces for i in JUDGE.encode_ordinary(piece)] == JUDGE.encode_ordinary(text)
        cuts += len(pieces) - 1
    assert cuts > 200


@pytest.mark.parametrize("before", [[], ["a few words"]])
def test_a_huge_document_is_cut_whatever_waits_before_it(
    before: list[str], tmp_path: Path, make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(self: BpeTokenizer, texts: Texts) -> tuple[Any, Any]:
        sizes.append(len(flat(texts)[0]))
        return real(self, texts)

    real, sizes = BpeTokenizer.encode_texts, []
    monkeypatch.setattr(BpeTokenizer, "encode_texts", encode)
    monkeypatch.setattr(side, "BATCH_BYTES", 1000)
    monkeypatch.setattr(unit, "BATCH_BYTES", 1000)
    texts = [*before, "some words " * 1000]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    data = {"tokenizer": "gpt2", "validation_fraction": 0}
    cfg = make_config(tmp_path / "a.jsonl", data=data, model={"vocab_size": 50257})
    job = open_job(cfg.data)
    job.do(job.units[0])
    assert max(sizes) < 1100  # a cut lies between words
    assert tokens_by_document(cfg) == [JUDGE.encode_ordinary(text) for text in texts]


PEAK = """
import sys
from gptscale.config.load import load_config
from gptscale.data.prepare import prepare
prepare(load_config(sys.argv[1]), lambda line: None)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def peak_megabytes(cfg: Config) -> float:
    """The most memory that a process had in which one worker prepared a corpus."""
    path = cfg.data.dir.with_suffix(".yaml")
    path.write_text(dump_config(cfg))
    done = subprocess.run([sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True)
    return int(done.stdout) * 1024 / 1e6


class Untouched(np.ndarray):
    """Ids that whole-array code may use and nobody may take out one by one."""

    def _refuse(self, *of: Any) -> Any:
        raise AssertionError("a token became a Python object")

    tolist = item = __iter__ = __int__ = __index__ = _refuse


@pytest.mark.parametrize("engine", ["gigatoken", "tiktoken"])
@pytest.mark.parametrize("end_of_text", [True, False])
def test_no_token_becomes_a_python_int(
    engine: str, end_of_text: bool, tmp_path: Path, make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(self: BpeTokenizer, texts: Texts) -> tuple[Any, Any]:
        ids, offsets = real(self, texts)
        return ids.view(Untouched), offsets

    def refuse(*of: Any, **options: Any) -> Any:
        raise AssertionError("tiktoken was asked for a list")

    real = BpeTokenizer.encode_texts
    monkeypatch.setattr(BpeTokenizer, "encode_texts", encode)
    for name in ("encode", "encode_ordinary", "encode_batch", "encode_ordinary_batch", "encode_with_unstable"):
        monkeypatch.setattr(tiktoken.Encoding, name, refuse)
    pq.write_table(
        pa.table({"text": [f"{i} some words" for i in range(5000)] + ["long " * 10**5]}), tmp_path / "a.parquet"
    )
    data = {"tokenizer": "gpt2", "tokenizer_engine": engine, "validation_fraction": 0.1, "end_of_text": end_of_text}
    cfg = make_config(tmp_path / "a.parquet", data=data, model={"vocab_size": 50257})
    manifest = prepare(cfg, lambda line: None)
    assert sum(shard.documents for shard in manifest.shards) == 5001
    with pytest.raises(AssertionError, match="a token became"):
        next(iter(np.arange(3).view(Untouched)))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_hundred_megabytes_in_one_line_take_less_than_600_megabytes(
    name: str, tmp_path: Path, make_config: Make
) -> None:
    sentence = "The quick brown fox, 12 of them, jumps over naïve dogs."
    times = 10**8 // (len(sentence.encode()) + 1)
    text = " ".join([sentence] * times)
    if name.endswith("parquet"):
        pq.write_table(pa.table({"text": [text, "x"]}), tmp_path / name)
    else:
        (tmp_path / name).write_text(json.dumps({"text": text}) + '\n{"text": "x"}\n')
    del text
    data = {"tokenizer": "gpt2", "validation_fraction": 0}
    cfg = make_config(tmp_path / name, data=data, model={"vocab_size": 50257})
    assert peak_megabytes(cfg) < 600
    first, later = JUDGE.encode_ordinary(sentence), JUDGE.encode_ordinary(" " + sentence)
    tokens = open_shard(cfg.data.dir / "train-00000.bin")
    assert tokens[: 1 + len(first)].tolist() == [END, *first]
    rest = tokens[1 + len(first) : -2].reshape(times - 1, len(later))
    assert (rest == np.array(later)).all()
    assert tokens[-2:].tolist() == [END, *JUDGE.encode_ordinary("x")]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path, make_config: Make) -> None:
    peaks = []
    for megabytes in (40, 240):
        texts = [f"{i} some words of a document, and more of them. " * 80 for i in range(megabytes * 250)]
        pq.write_table(pa.table({"text": texts}), tmp_path / f"{megabytes}.parquet")
        data = {"tokenizer": "gpt2", "dir": tmp_path / f"corpus-{megabytes}", "documents_per_shard": 10**6}
        cfg = make_config(tmp_path / f"{megabytes}.parquet", data=data, model={"vocab_size": 50257})
        peaks.append(peak_megabytes(cfg))
    assert peaks[1] < peaks[0] + 130  # two thirds of the text that was added; equal runs differ by up to 30
    assert peaks[1] < 600
