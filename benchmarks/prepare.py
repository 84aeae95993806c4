"""The preparation of a corpus beside other ways to the same tokens.

    python benchmarks/prepare.py [--megabytes 400] [--rounds 3] [--scratch FOLDER]

The text is the source of the installed Python packages, written as Parquet and as JSON Lines. Each round runs, one
after another and each in processes of its own:

* ours: Parquet (and JSON Lines) to shards whose every byte was read back and hashed, on all cores, start to end;
* ours with the tiktoken engine;
* tiktoken: encode_ordinary_batch on all cores, over text that is already in memory, nothing written;
* nanoGPT's way, written anew from its description: datasets.map with num_proc to lists of ids and their lengths, then
  batches copied into one memory map of uint16.

The table shows medians, ratios of them, and the largest memory of a process of ours. Ratios above 1 mean that ours is
faster. Ours starts processes of its own, which takes half a second however long the text is: with a few megabytes, to
try the program out, the ratios mean nothing. From 400 MB on it exits with 1 where a bound is missed. The whole of it is
meant to take less than 8 minutes on 2 quiet cores.
"""

import argparse
import itertools
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from mistakes import positive, told

from gptscale.config.load import parse_config
from gptscale.config.schema import Config
from gptscale.data.prepare import prepare
from gptscale.data.tokenizer import load_tokenizer
from gptscale.data.workers import cores

FULL_MEGABYTES = 400
MOST_BYTES = 600e6
UNITS_PER_CORE = 8
ROW_GROUP = 1000  # documents; units are whole row groups, so that none is decoded twice


def main() -> int:
    """Write the text, measure and compare; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=positive, default=FULL_MEGABYTES)
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--scratch", type=Path, help="where to work; a temporary folder without it")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)  # what this program starts itself with
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(WAYS[arguments.way](arguments.scratch)))
        return 0
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        size, documents = write_text(Path(folder), arguments.megabytes * 10**6)
        print(f"{size / 1e6:.0f} MB of Python source in {documents:,} documents, {cores()} cores\n")
        good = compare(Path(folder), size, arguments.rounds)
    return 0 if good or size < FULL_MEGABYTES * 10**6 else 1


def compare(folder: Path, size: int, rounds: int) -> bool:
    """Run every way in every round and print the table; whether every bound is kept."""
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for number in range(rounds):
        for way in WAYS:
            command = [sys.executable, __file__, "--scratch", str(folder), "--way", way]
            os.sync()  # what was written before is not to be waited for by the next
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"round {number + 1}: {way}: {found[way][-1]['seconds']:.1f} s", flush=True)
    seconds = {way: statistics.median(run["seconds"] for run in runs) for way, runs in found.items()}
    print()
    for way, median in seconds.items():
        print(f"{way:22s} {median:8.2f} s {size / 1e6 / median:9.1f} MB/s")
    ours, raw = seconds["ours, Parquet"], seconds["tiktoken"]
    assert len({run["tokens"] for runs in found.values() for run in runs}) == 1, "the ways do not give the same tokens"
    ratios = {
        "Parquet to verified shards against raw tiktoken": (raw / ours, 6, 12),
        "with the tiktoken engine against raw tiktoken": (raw / seconds["ours, tiktoken"], 0.9, 0.97),
        "against nanoGPT's way, the whole job": (seconds["nanoGPT"] / ours, 15, 30),
    }
    print(f"\n{'JSON Lines to verified shards against raw tiktoken':50} {raw / seconds['ours, JSON Lines']:6.2f}x")
    for name, (ratio, least, aim) in ratios.items():
        print(f"{name:50} {ratio:6.2f}x   (at least {least}, aim {aim})")
    peak = max(run["peak"] for way, runs in found.items() if way.startswith("ours") for run in runs)
    print(f"{'largest memory of a process':50} {peak / 1e6:6.0f} MB  (at most {MOST_BYTES / 1e6:g})")
    return peak <= MOST_BYTES and all(ratio >= least for ratio, least, _ in ratios.values())


def ours(folder: Path, name: str, engine: str = "gigatoken") -> dict[str, float]:
    """Prepare in one process for each core."""
    shutil.rmtree(folder / "corpus", ignore_errors=True)
    documents = pq.read_metadata(folder / "text.parquet").num_rows
    groups = max(1, round(documents / ROW_GROUP / (UNITS_PER_CORE * cores())))
    began = time.perf_counter()
    cfg = config(folder, name, engine, groups * ROW_GROUP)
    manifest = prepare(cfg, lambda line: None, workers=cores())
    seconds = time.perf_counter() - began
    tokens = sum(shard.tokens - shard.documents for shard in manifest.shards)
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)  # little text is prepared without workers
    peak = max(resource.getrusage(of).ru_maxrss for of in who) * 1024
    return {"seconds": seconds, "tokens": tokens, "peak": peak}


def config(folder: Path, name: str, engine: str, documents_per_shard: int) -> Config:
    """A preparation of one of the two files."""
    data = {
        "dir": folder / "corpus",
        "source": {"path": str(folder / name)},
        "tokenizer_engine": engine,
        "documents_per_shard": documents_per_shard,
    }
    return parse_config({"run": {"dir": folder / "run"}, "data": data, "train": {"steps": 1}})


def raw_tiktoken(folder: Path) -> dict[str, float]:
    """tiktoken's own batches over a list of texts."""
    texts = pq.read_table(folder / "text.parquet")["text"].to_pylist()
    encoding = tiktoken_encoding()
    began = time.perf_counter()
    ids = encoding.encode_ordinary_batch(texts, num_threads=cores())
    return {"seconds": time.perf_counter() - began, "tokens": sum(map(len, ids)), "peak": 0}


def nanogpt(folder: Path) -> dict[str, float]:
    """The whole job in nanoGPT's way, without a cache of an earlier run."""
    import datasets

    datasets.disable_progress_bars()
    cache = folder / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    began = time.perf_counter()
    table = datasets.load_dataset(
        "parquet", data_files=str(folder / "text.parquet"), split="train", cache_dir=str(cache)
    )
    halves = table.train_test_split(test_size=0.0005, seed=2357, shuffle=True)
    encoded = halves.map(ids_and_length, remove_columns=["text"], num_proc=cores())
    tokens = 0
    for name, part in encoded.items():
        length = int(np.sum(part["len"], dtype=np.uint64))
        mapped = np.memmap(folder / f"{name}.bin", dtype=np.uint16, mode="w+", shape=(length,))
        at = 0
        for number in range(batches := min(1024, len(part))):
            batch = part.shard(num_shards=batches, index=number, contiguous=True).with_format("numpy")
            joined = np.concatenate(batch["ids"])
            mapped[at : at + len(joined)] = joined
            at += len(joined)
        mapped.flush()
        tokens += length - len(part)  # each document ends with an end of text
    return {"seconds": time.perf_counter() - began, "tokens": tokens, "peak": 0}


def ids_and_length(row: dict[str, str]) -> dict[str, object]:
    """A document's ids with an end of text behind them."""
    encoding = tiktoken_encoding()
    ids = [*encoding.encode_ordinary(row["text"]), encoding.eot_token]
    return {"ids": ids, "len": len(ids)}


@cache
def tiktoken_encoding() -> Any:
    """tiktoken with the same pattern and ranks as ours; loaded once in each process."""
    return load_tokenizer("gpt2")._judge  # type: ignore[attr-defined]


WAYS: dict[str, Callable[[Path], dict[str, float]]] = {
    "ours, Parquet": lambda folder: ours(folder, "text.parquet"),
    "ours, JSON Lines": lambda folder: ours(folder, "text.jsonl"),
    "tiktoken": raw_tiktoken,
    "ours, tiktoken": lambda folder: ours(folder, "text.parquet", "tiktoken"),
    "nanoGPT": nanogpt,
}


def write_text(folder: Path, wanted: int) -> tuple[int, int]:
    """Write so many bytes of Python source as Parquet and JSON Lines; gives the bytes and documents.

    A row group at a time: what this process has held at most, Linux counts for the processes that it starts too.
    """
    size = documents = 0
    schema = pa.schema({"text": pa.string()})
    with pq.ParquetWriter(folder / "text.parquet", schema) as parquet, (folder / "text.jsonl").open("w") as lines:
        texts = python_sources()
        while size < wanted and (group := group_of(texts, wanted - size)):
            parquet.write_table(pa.table({"text": group}, schema))
            lines.writelines(json.dumps({"text": text}) + "\n" for text in group)
            size += sum(len(text.encode()) for text in group)
            documents += len(group)
    if size < wanted:
        print(f"the installed packages hold {size / 1e6:.0f} MB of source, less than was asked for")
    return size, documents


def group_of(texts: Iterator[str], wanted: int) -> list[str]:
    """The next texts, as many as a row group has, or fewer that have so many bytes."""
    group: list[str] = []
    for text in itertools.islice(texts, ROW_GROUP):
        group.append(text)
        wanted -= len(text.encode())
        if wanted <= 0:
            break
    return group


def python_sources() -> Iterator[str]:
    """The text of every Python file below the folders that Python imports from."""
    seen: set[Path] = set()
    for root in (Path(entry) for entry in sys.path if entry):
        for path in sorted(root.rglob("*.py")):
            if path.resolve() not in seen and path.is_file():
                seen.add(path.resolve())
                text = path.read_text(errors="replace")
                if text:
                    yield text


if __name__ == "__main__":
    raise SystemExit(told(main))
