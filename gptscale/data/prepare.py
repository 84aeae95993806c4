"""The preparation of a corpus: from the source to shards and a manifest, restartable at every shard."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gptscale.config.schema import Config, DataConfig, SourceConfig
from gptscale.data.files import remove_leftovers
from gptscale.data.manifest import (
    FILE_NAME,
    SETTINGS_NAME,
    Manifest,
    Settings,
    ShardEntry,
    Split,
    load_manifest,
    load_settings,
)
from gptscale.data.sources import Source, open_source
from gptscale.data.tokenizer import Tokenizer, load_tokenizer
from gptscale.data.unit import cut_units, finished_shards, make_unit, read_receipts, remove_unit
from gptscale.errors import DataError

Say = Callable[[str], None]


def prepare(cfg: Config, say: Say = print) -> Manifest:
    """Make the corpus of data.dir, or what is missing or damaged of it; what is whole is reused.

    Raises DataError when data.dir holds a corpus of other settings, finished or not, and when nothing is left to
    train on.
    """
    data = cfg.data
    earlier = load_manifest(data.dir) if os.path.exists(data.dir / FILE_NAME) else None
    tokenizer = load_tokenizer(data.tokenizer)
    begun = earlier.settings if earlier else load_settings(data.dir)
    source = open_source(_pinned(data.source, begun))
    settings = _settings(data, tokenizer, source)
    _begin(data.dir, settings, earlier, begun)
    manifest = Manifest(settings=settings, shards=_make_shards(source, tokenizer, data, settings, say))
    _check_not_empty(manifest, data)
    if manifest != earlier:
        manifest.save(data.dir)
    (data.dir / SETTINGS_NAME).unlink(missing_ok=True)
    for line in _summary(manifest):
        say(line)
    return manifest


def _pinned(source: SourceConfig, begun: Settings | None) -> SourceConfig:
    """Keep a corpus at the Hub revision it was begun with, unless the config names another."""
    was = begun.source if begun else {}
    if source.revision is None and was.get("kind") == "hub" and was.get("path") == source.path:
        return source.model_copy(update={"revision": was["revision"]})
    return source


def _settings(data: DataConfig, tokenizer: Tokenizer, source: Source) -> Settings:
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


def _begin(folder: Path, settings: Settings, earlier: Manifest | None, begun: Settings | None) -> None:
    """Check that the folder is free for these settings, record them, and clear what a killed preparation left."""
    _make_folder(folder)
    if earlier is not None:
        _check_same(earlier.settings, settings, folder)
    else:
        _check_unfinished(begun, settings, folder)
    remove_leftovers(folder)
    _remove_damaged(folder)
    if earlier is None:
        settings.save(folder)


def _check_unfinished(begun: Settings | None, wanted: Settings, folder: Path) -> None:
    """Refuse a folder in which units were finished under other settings."""
    keys = {receipt.key for receipt in read_receipts(folder).values() if receipt} - {wanted.key}
    if not keys:
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
    if _short(there) == _short(here):
        return f"{name} {_short(there)} has changed"
    return f"{name} {_short(there)} there, {_short(here)} here"


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("path") or value["name"])
    return str(value)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"data.dir={folder} cannot be made: {error.strerror}; choose another data.dir") from None


def _remove_damaged(folder: Path) -> None:
    """Delete the units whose receipts are damaged."""
    for number, receipt in read_receipts(folder).items():
        if receipt is None:
            remove_unit(folder, number)


def _remove_all(folder: Path) -> None:
    """Delete every unit and the settings, so that others may use the folder."""
    for number in read_receipts(folder):
        remove_unit(folder, number)
    (folder / SETTINGS_NAME).unlink(missing_ok=True)


def _make_shards(
    source: Source, tokenizer: Tokenizer, data: DataConfig, settings: Settings, say: Say
) -> tuple[ShardEntry, ...]:
    shards: list[ShardEntry] = []
    units = cut_units(len(source), data.documents_per_shard)
    for unit in units:
        finished = finished_shards(data.dir, unit, settings.key)
        made = make_unit(unit, source, tokenizer, data, settings) if finished is None else finished
        verb = "wrote" if finished is None else "reusing"
        say(f"unit {unit.number + 1}/{len(units)}: {verb} {', '.join(map(_describe, made)) or 'no text'}")
        shards.extend(made)
    return tuple(shards)


def _describe(shard: ShardEntry) -> str:
    return f"{shard.file} ({shard.tokens:,} tokens)"


def _check_not_empty(manifest: Manifest, data: DataConfig) -> None:
    """Refuse a corpus without training text; it is of no use, so nothing of it stays."""
    if not manifest.of("train"):
        _remove_all(data.dir)
    if not manifest.shards:
        raise DataError(f"data.source.path={data.source.path} holds only empty documents")
    if not manifest.of("train"):
        raise DataError(
            f"nothing to train on: all {_total(manifest, 'val', 'documents')} documents fell to validation; "
            "use data.split=tail, another data.split_seed, or a lower "
            f"data.validation_fraction={data.validation_fraction}"
        )


def _summary(manifest: Manifest) -> list[str]:
    lines = [
        f"{split}: {_total(manifest, split, 'documents'):,} documents, "
        f"{_total(manifest, split, 'text_bytes'):,} bytes, {_total(manifest, split, 'tokens'):,} tokens"
        for split in ("train", "val")
    ]
    s = manifest.settings
    how = f"seed {s.split_seed}, by document" if s.split == "hash" else "the end of every document"
    lines.append(f"split: {s.split}, {s.validation_fraction:g} for validation ({how})")
    return [*lines, f"fingerprint: {manifest.fingerprint}"]


def _total(manifest: Manifest, split: Split, field: str) -> int:
    return sum(getattr(shard, field) for shard in manifest.of(split))
