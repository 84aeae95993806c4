"""The record of a run on disk: log.jsonl, samples.jsonl and histograms.jsonl, one JSON object per line.

Histograms have a file of their own, since those of one step can be larger than all other records of a run.
A number that is not finite is written as null, since JSON has no word for it, and read back as nan.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from gptscale.disk import write_stream
from gptscale.errors import TrainingError
from gptscale.tracking.tracker import Histogram, Histograms, Record

LOG_FILE = "log.jsonl"
SAMPLES_FILE = "samples.jsonl"
HISTOGRAMS_FILE = "histograms.jsonl"


class JsonlSink:
    """Appends to the files of a run folder; every line has left the process when the call returns."""

    name = "log.jsonl"
    required = True

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._files: dict[Path, TextIO] = {}
        for name in (LOG_FILE, SAMPLES_FILE):  # most runs do without histograms
            self._open(run_dir / name)

    def log(self, record: Record) -> None:
        """Append the record; raises TrainingError when the disk refuses it."""
        self._append(LOG_FILE, plain(record))

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Append the sample; raises TrainingError when the disk refuses it."""
        self._append(SAMPLES_FILE, {"step": step, "prompt": prompt, "text": text})

    def histograms(self, progress: Record, found: Histograms) -> None:
        """Append the histograms; raises TrainingError when the disk refuses them."""
        counted = {name: asdict(histogram) for name, histogram in found.items()}
        self._append(HISTOGRAMS_FILE, {**progress, "histograms": counted})

    def flush(self) -> None:
        """Wait until every line is on disk; raises TrainingError when the disk refuses it."""
        for path, file in self._files.items():
            with _refusal_is_said(path):
                os.fsync(file.fileno())

    def close(self, failed: bool = False) -> None:
        """Close all files; raises TrainingError when the disk refuses a last line."""
        with ExitStack() as stack:
            for path, file in self._files.items():
                stack.enter_context(_refusal_is_said(path))
                stack.callback(file.close)

    def _append(self, name: str, record: Mapping[str, Any]) -> None:
        path = self._run_dir / name
        with _refusal_is_said(path):
            file = self._files.get(path) or self._open(path)
            file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
            file.flush()

    def _open(self, path: Path) -> TextIO:
        with _refusal_is_said(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # JSON's own escape of a lone surrogate is Python's backslash, so any text can be written.
            file = path.open("a", encoding="utf-8", errors="backslashreplace", newline="\n")
        return self._files.setdefault(path, file)


def read_log(path: Path) -> list[dict[str, float]]:
    """Read the records of log.jsonl, none if there is no file; a torn last line is left out.

    Raises TrainingError for a torn line with others after it, and for a value that is no number.
    """
    records = [record for _, record in _records(path)]
    for record in records:
        for key, value in record.items():
            if value is not None and not isinstance(value, int | float):
                raise TrainingError(
                    f"{path} says {key}={value!r} at step {record['step']}, which is no number; "
                    "the file was changed from outside: remove that line"
                )
    return [{key: math.nan if value is None else value for key, value in record.items()} for record in records]


def read_samples(path: Path) -> list[dict[str, Any]]:
    """Read samples.jsonl as step, prompt and text, none if there is no file; a torn last line is left out."""
    return [record for _, record in _records(path)]


def read_histograms(path: Path) -> Iterator[tuple[Record, Histograms]]:
    """Read histograms.jsonl as progress and histograms, one step after another since all of them take gigabytes.

    None if there is no file; a torn last line is left out, and so is what is written from this call on.
    """
    until = path.stat().st_size if path.exists() else 0
    records = ((record, record.pop("histograms")) for _, record in _records(path, until))
    return ((record, {name: Histogram(**its) for name, its in found.items()}) for record, found in records)


def cut_back(run_dir: Path, step: int | None) -> None:
    """Drop what was recorded after the step, and a torn last line; null drops everything.

    Call it before a resume, so that a run has one history however often it was stopped.
    """
    for name in (LOG_FILE, SAMPLES_FILE, HISTOGRAMS_FILE):
        path = run_dir / name
        if path.exists():
            kept = (line + b"\n" for line, record in _records(path) if step is not None and record["step"] <= step)
            with _refusal_is_said(path):
                write_stream(path, kept)


@contextmanager
def _refusal_is_said(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"cannot write {path}: {error.strerror}; free space or mend the permissions of that folder "
            "and start the same command again, it goes on from the last checkpoint"
        ) from error


def plain(value: Any) -> Any:
    """A value as JSON has it: null for what is no finite number, at any depth."""
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _records(path: Path, until: float = math.inf) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield each line with what it says, one at a time since histograms take gigabytes; only the last may be torn.

    until is the number of the bytes to read.
    """
    torn = None
    for number, line in enumerate(_raw_lines(path, until), start=1):
        if torn is not None:
            raise TrainingError(
                f"{path} line {torn} is not a whole record, and lines follow it; "
                "the file was changed from outside: remove that line"
            )
        record = _parsed(line)
        if record is None:
            torn = number
        else:
            yield line, record


def _raw_lines(path: Path, until: float) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            for line in file:
                if file.tell() > until:
                    return
                yield line.removesuffix(b"\n")
                if not line.endswith(b"\n"):
                    return  # a training that goes on may write its rest meanwhile, which were a line by itself
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise TrainingError(f"cannot read {path}: {error.strerror}; mend that file's permissions or move it") from None


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Read one line; None if it is torn."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # also what a cut UTF-8 character raises
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None
