"""The manifest of a corpus: what it was made from, its shards, and the fingerprint that names its tokens.

While a corpus is being made there is no manifest yet, and settings.json says what it is made from. It stays: a
manifest that was damaged can be made again of the very same source.
"""

import hashlib
import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from gptscale.data.files import write_whole
from gptscale.errors import DataError

FILE_NAME = "manifest.json"
SETTINGS_NAME = "settings.json"
FORMAT_VERSION = 2
"""2: the hash that holds documents out is XXH3; it was BLAKE2b in 1."""

# How manifest.json of a checkpoint and of a corpus, damaged or not, are told apart; inside a string quotes are escaped.
_CHECKPOINT = re.compile(rb'"format":\s*"gptscale-checkpoint-')
_CORPUS = re.compile(rb'\s*\{\s*"settings":\s*\{\s*"format_version"')

Split = Literal["train", "val"]
Dtype = Literal["uint16", "uint32"]


class Record(BaseModel):
    """A frozen piece of JSON that refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ShardEntry(Record):
    """One shard of a corpus."""

    file: str
    """Its name in the corpus folder; the whole path of an adopted file."""
    offset: int | None = None
    """Bytes before the tokens of an adopted file; null for a shard of ours, which has a header."""
    split: Split
    tokens: int
    documents: int
    text_bytes: int
    sha256: str
    blocks_sha256: tuple[str, ...] = ()
    """Those of every 64 MiB, so that damage can be named by its place; none for a shorter file."""
    starts_sha256: str | None
    """That of the document starts beside the shard; null for an adopted file, which has none."""
    longest: tuple[tuple[int, int], ...] = ()
    """Tokens and source row of the longest documents, the longest first."""


class Settings(Record):
    """What decides a corpus' bytes; a shard made under other settings is of no use."""

    format_version: int = FORMAT_VERSION
    tokenizer: dict[str, str | int]
    dtype: Dtype
    end_of_text: int | None
    """The id before every document; null where there is none."""
    split: Literal["hash", "tail", "adopted"]
    validation_fraction: float
    split_seed: int
    documents_per_shard: int
    source: dict[str, Any]

    @cached_property
    def key(self) -> str:
        """The SHA-256 of the settings."""
        return hash_json(self.deciding())

    def deciding(self) -> dict[str, Any]:
        """The settings as JSON; the source counts by its content, not by its path."""
        values = self.model_dump(mode="json")
        values["source"].pop("path", None)
        return values

    def save(self, folder: Path) -> None:
        """Write settings.json, whole or not at all."""
        _write_json(folder / SETTINGS_NAME, self)


class Manifest(Record):
    """A whole corpus."""

    settings: Settings
    shards: tuple[ShardEntry, ...]
    left_out: int = 0
    """Documents that were too short or too long for data.source.min_characters and max_characters."""

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the tokenizer's identity and of every shard's content, in order.

        Corpora with one fingerprint hold the same tokens, wherever and whenever they were made.
        """
        shards = [[s.split, s.tokens, s.documents, s.sha256] for s in self.shards]
        return hash_json({"tokenizer": self.settings.tokenizer, "shards": shards})

    def of(self, split: Split) -> list[ShardEntry]:
        """The shards of one split, in order."""
        return [shard for shard in self.shards if shard.split == split]

    def save(self, folder: Path) -> None:
        """Write manifest.json with its own digest, whole or not at all."""
        _write_json(folder / FILE_NAME, _Written(**dict(self), digest=hash_json(self.model_dump(mode="json"))))


class _Written(Manifest):
    """A manifest as it is on disk."""

    digest: str | None = None
    """The SHA-256 of all the rest; null in a manifest that is older than digests."""


def load_manifest(folder: Path, setting: str = "data.dir") -> Manifest:
    """Read a corpus folder's manifest; messages name the setting that the folder comes from.

    Raises DataError when there is none, when it is damaged and when it was changed since.
    """
    try:
        content = (folder / FILE_NAME).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        here = "" if folder.is_absolute() else f", or go to where that path begins, which is not {Path.cwd()}"
        raise DataError(f"{setting}={folder} holds no corpus; run `gptscale prepare CONFIG`{here}") from None
    except OSError as error:
        raise DataError(
            f"{setting}={folder}: its {FILE_NAME} cannot be read: {error.strerror}; let this user read it"
        ) from None
    try:
        written = _Written.model_validate_json(content)
    except ValidationError as error:
        raise DataError(_no_manifest(folder, content, error)) from None
    fields = json.loads(content)  # and not what was made of them: a later version may have more of them
    if written.digest is not None and fields.pop("digest") != hash_json(fields):
        raise DataError(
            f"{folder / FILE_NAME} was changed after it was written; restore it from a copy, or delete it and run "
            "`gptscale prepare CONFIG` (or adopt) again"
        )
    return Manifest(**{name: value for name, value in written if name != "digest"})


def load_settings(folder: Path) -> Settings | None:
    """What the unfinished corpus in a folder is made from; None if that is not recorded, or damaged."""
    try:
        return Settings.model_validate_json((folder / SETTINGS_NAME).read_bytes())
    except (OSError, ValidationError):
        return None


def _no_manifest(folder: Path, content: bytes, error: ValidationError) -> str:
    """What a manifest.json is instead; only a corpus' own may be deleted."""
    if _CHECKPOINT.search(content):
        return f"data.dir={folder} is a checkpoint, not a corpus; set data.dir to a corpus or to a new folder"
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "as a whole"
    path, problem = folder / FILE_NAME, f"{where}: {first['msg']}"
    if _CORPUS.match(content):
        return f"{path} is no manifest of this version ({problem}); delete it and run `gptscale prepare CONFIG`"
    return f"{path} is not the manifest of a corpus ({problem}); choose another data.dir"


def _write_json(path: Path, record: Record) -> None:
    text = json.dumps(record.model_dump(mode="json"), indent=1, ensure_ascii=False)
    write_whole(path, (text + "\n").encode())


def hash_json(values: Any) -> str:
    """The SHA-256 of values in one canonical form of JSON: sorted keys, no spaces, ASCII."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
