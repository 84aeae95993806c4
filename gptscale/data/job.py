"""A preparation job: a source, a tokenizer, the settings that follow from them, and the folder that is theirs."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from gptscale.config.data import DataConfig, SourceConfig
from gptscale.data.file_identity import Stamps, stamp
from gptscale.data.files import remove_leftovers
from gptscale.data.globs import could_find
from gptscale.data.manifest import (
    FILE_NAME,
    SETTINGS_NAME,
    Manifest,
    Settings,
    load_manifest,
    load_settings,
)
from gptscale.data.source_files import changed, stamp_files
from gptscale.data.sources import Source, open_source
from gptscale.data.streamed import Streamed
from gptscale.data.texts import list_texts
from gptscale.data.tokenizer import Tokenizer, load_tokenizer
from gptscale.data.unit import Receipt, Unit, WrittenUnit, cut_units, finished, read_receipts, remove_unit, write_unit
from gptscale.errors import DataError


@dataclass(frozen=True)
class Job:
    """Everything that making a unit needs; it can be sent to another process."""

    data: DataConfig
    source: Source | Streamed
    settings: Settings
    tokenizer: Tokenizer
    """The corpus' own, loaded anew in a process to which the job is sent."""
    files: Stamps
    """Those of the source's files before it was opened. These and the receipts are not sent to other processes."""
    receipts: dict[int, Receipt]
    """Those under these settings, by unit, when the job was opened; the shards were not looked at."""

    @cached_property
    def units(self) -> list[Unit]:
        """The work, cut by the source alone."""
        return cut_units(self.source, self.data.documents_per_shard)

    def do(self, unit: Unit) -> tuple[Receipt, bool]:
        """Make a unit unless it is finished; says whether it was made."""
        return sealed(self.begin(unit))

    def begin(self, unit: Unit) -> Receipt | WrittenUnit:
        """The receipt of a unit that is finished; else write it, which its seal will finish."""
        receipt = finished(self.data.folder, unit, self.settings.key)
        return receipt or write_unit(unit, self.source, self.tokenizer, self.data, self.settings)

    def check_source(self) -> None:
        """Raise DataError if a file of the source is not as it was before it was opened."""
        for path, was in self.files.items():
            if stamp(path) != was:
                raise changed(self.data.given_source.path, path)

    @staticmethod
    def give_memory_back() -> None:
        """Let Arrow do so in this process: its own pool keeps what a long text took."""
        pa.set_memory_pool(pa.system_memory_pool())

    def load_engines(self) -> None:
        """Load what the tokenizer loads when it is first used."""
        self.tokenizer.encode_texts(list_texts(["first"]))

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("data", "source", "settings")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, tokenizer=_tokenizer_of(state["data"]))


def sealed(found: Receipt | WrittenUnit) -> tuple[Receipt, bool]:
    """The receipt of what was begun, and whether it was made now."""
    return (found.seal(), True) if isinstance(found, WrittenUnit) else (found, False)


def open_job(data: DataConfig, say: Callable[[str], None] = lambda line: None) -> Job:
    """Open the source, check that data.dir is free for it, record the settings there, and clear what was half-written.

    Says which files of the source are passed over. Raises DataError when the folder holds a corpus of other settings,
    finished or not.
    """
    if data.source is None:
        raise DataError(
            "data.source is missing, so there is nothing to prepare; name the text by data.source.path"
            + ("; each corpus of data.mixture is prepared by a config of its own" if data.mixture else "")
        )
    _check_apart(data.folder, data.source)
    files = stamp_files(data.source, say)
    earlier = earlier_manifest(data.folder)
    begun = earlier.settings if earlier else load_settings(data.folder)
    with ThreadPoolExecutor(1) as thread:
        loading = thread.submit(_tokenizer_of, data)  # while the source's files are hashed, which leaves Python's lock
        source = open_source(_pinned(data.given_source, begun))
        tokenizer = loading.result()
    settings = _settings(data, tokenizer, source)
    _make_folder(data.folder)
    receipts = read_receipts(data.folder)
    if earlier is not None:
        _check_same(earlier.settings, settings, data.folder)
    else:
        _check_unfinished(begun, settings, data.folder, {receipt.key for receipt in receipts.values() if receipt})
    remove_leftovers(data.folder)
    for number in (number for number, receipt in receipts.items() if receipt is None):  # damaged
        remove_unit(data.folder, number)
    if earlier is None:
        settings.save(data.folder)
    ours = {number: receipt for number, receipt in receipts.items() if receipt and receipt.key == settings.key}
    return Job(data, source, settings, tokenizer, files, ours)


def _tokenizer_of(data: DataConfig) -> Tokenizer:
    return load_tokenizer(data.tokenizer, data.tokenizer_engine)


def _check_apart(folder: Path, source: SourceConfig) -> None:
    """Refuse a corpus among its own sources: the next command would count its files as text."""
    root = os.path.expanduser(source.path)
    if os.path.isdir(root) and folder.resolve().is_relative_to(Path(root).resolve()):
        raise DataError(
            f"data.dir={folder} lies inside data.source.path={source.path}, all of which is read; choose a data.dir "
            "outside of it"
        )
    if not os.path.exists(root) and any(could_find(root, folder / name) for name in (FILE_NAME, SETTINGS_NAME)):
        raise DataError(
            f"data.source.path={source.path} matches files of data.dir={folder} too; choose a data.dir that it does not"
        )


def remove_all(folder: Path) -> None:
    """Delete every unit and the settings, so that others may use the folder."""
    for number in read_receipts(folder):
        remove_unit(folder, number)
    (folder / SETTINGS_NAME).unlink(missing_ok=True)


def earlier_manifest(folder: Path) -> Manifest | None:
    """The manifest of a corpus that was finished before."""
    return load_manifest(folder) if os.path.exists(folder / FILE_NAME) else None


def _pinned(source: SourceConfig, begun: Settings | None) -> SourceConfig:
    """Keep a corpus at the Hub revision it was begun with, unless the config names another."""
    was = begun.source if begun else {}
    if source.revision is None and was.get("kind") == "hub" and was.get("path") == source.path:
        return source.model_copy(update={"revision": was["revision"]})
    return source


def _settings(data: DataConfig, tokenizer: Tokenizer, source: Source | Streamed) -> Settings:
    return Settings(
        tokenizer=tokenizer.identity,
        dtype="uint16" if tokenizer.n_vocab <= 2**16 else "uint32",
        end_of_text=tokenizer.end_of_text if data.end_of_text else None,
        split=data.split,
        validation_fraction=data.validation_fraction,
        split_seed=data.split_seed,
        documents_per_shard=data.documents_per_shard,
        source=source.description,
    )


def _check_unfinished(begun: Settings | None, wanted: Settings, folder: Path, keys: set[str]) -> None:
    """Refuse a folder in which units were finished under other settings."""
    if keys <= {wanted.key}:
        return
    if begun is not None and begun.key in keys:
        _check_same(begun, wanted, folder)
    raise DataError(
        f"data.dir={folder} holds units of another corpus, which is not finished and does not say how its "
        "settings differ; choose another data.dir, or delete that folder"
    )


def _check_same(there: Settings, wanted: Settings, folder: Path) -> None:
    if there.key == wanted.key:
        return
    now = wanted.deciding()
    differing = [
        _difference(name, getattr(there, name), getattr(wanted, name))
        for name, was in there.deciding().items()
        if was != now[name]
    ]
    raise DataError(
        f"data.dir={folder} holds another corpus ({'; '.join(differing)}); "
        "choose another data.dir, or delete that folder"
    )


def _difference(name: str, there: Any, here: Any) -> str:
    if isinstance(there, dict) and there.get("kind") == here.get("kind"):
        keys = [key for key in {**there, **here} if key != "path" and there.get(key) != here.get(key)]
        return "; ".join(_key_difference(name, key, there.get(key), here.get(key)) for key in keys)
    if isinstance(there, dict):
        there, here = (values.get("path") or values.get("name") or values["kind"] for values in (there, here))
    return f"{name} {there} there, {here} here"


def _key_difference(name: str, key: str, there: Any, here: Any) -> str:
    if key == "files" and there and here:
        return f"{name}: {_changed_file(there, here)}"
    return f"{name}.{key} {there} there, {here} here"


def _changed_file(there: Iterable[dict[str, Any]], here: Iterable[dict[str, Any]]) -> str:
    """The first file, by name, that is not the same in two descriptions."""
    was, now = ({file["name"]: file for file in files} for files in (there, here))
    name = next((name for name in sorted({*was, *now}) if was.get(name) != now.get(name)), None)
    if name is None:
        return "the files have another order"
    return f"{name} {'is new' if name not in was else 'is gone' if name not in now else 'has changed'}"


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"data.dir={folder} cannot be made: {error.strerror}; choose another data.dir") from None
