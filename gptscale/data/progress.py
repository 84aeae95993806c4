"""What a preparation says while it works, and at its end."""

import time
from collections.abc import Callable, Sequence

from gptscale.data.manifest import Manifest, ShardEntry, Split
from gptscale.data.unit import Receipt, Unit

_LONGEST = 3

Say = Callable[[str], None]


class Progress:
    """Counts units as they are done; speed and time left are those of the units made now."""

    def __init__(self, units: int, say: Say, how: str = "hash") -> None:
        self._units = units
        self._say = say
        self._how = how
        self._began = time.monotonic()
        self._done = self._made = self._documents = self._tokens = self._made_bytes = 0

    def add(self, unit: Unit, receipt: Receipt, made: bool) -> None:
        """Count a unit and say where the preparation stands."""
        self._done += 1
        self._documents += _documents(receipt.shards, self._how)
        self._tokens += sum(shard.tokens for shard in receipt.shards)
        if made:
            self._made += 1
            self._made_bytes += sum(shard.text_bytes for shard in receipt.shards)
        files = ", ".join(f"{shard.file} ({shard.tokens:,} tokens)" for shard in receipt.shards)
        self._say(f"unit {unit.number + 1}: {'wrote' if made else 'reusing'} {files or 'no text'}; {self._standing()}")

    def _standing(self) -> str:
        sums = f"{self._done:,}/{self._units:,} units, {self._documents:,} documents, {self._tokens:,} tokens"
        if not self._made:
            return sums
        seconds = time.monotonic() - self._began
        left = seconds / self._made * (self._units - self._done)
        return f"{sums}, {self._made_bytes / 1e6 / seconds:.1f} MB/s, {_duration(left)} left"


def summary(manifest: Manifest) -> list[str]:
    """The last lines: sizes, longest documents, split and fingerprint."""
    lines = [_sizes(manifest, split) for split in ("train", "val")]
    total, val = (_total(manifest.shards, "tokens"), _total(manifest.of("val"), "tokens"))
    lines.append(
        f"all: {_documents(manifest.shards, manifest.settings.split):,} documents, {total:,} tokens, "
        f"{_total(manifest.shards, 'text_bytes') / total:.2f} bytes per token, {val / total:.2%} for validation"
    )
    longest = sorted(((*found, shard.file) for shard in manifest.shards for found in shard.longest), reverse=True)
    named = ", ".join(f"{tokens:,} tokens (document {row:,}, in {file})" for tokens, row, file in longest[:_LONGEST])
    lines += [f"longest documents: {named}"] if named else []
    if manifest.left_out:
        lines.append(f"left out: {manifest.left_out:,} documents, too short or too long")
    s = manifest.settings
    if not val and s.validation_fraction > 0:
        lines.append(
            "WARNING: no document fell to validation, which a training needs; prepare another data.dir with "
            "data.split=tail, the end of every document, or with a larger data.validation_fraction"
        )
    if s.split != "adopted":
        how = f"seed {s.split_seed}, by document" if s.split == "hash" else "the end of every document"
        lines.append(f"split: {s.split}, {s.validation_fraction:g} for validation ({how})")
    return [*lines, f"fingerprint: {manifest.fingerprint}"]


def _sizes(manifest: Manifest, split: Split) -> str:
    shards = manifest.of(split)
    return (
        f"{split}: {_total(shards, 'documents'):,} documents, {_total(shards, 'text_bytes'):,} bytes, "
        f"{_total(shards, 'tokens'):,} tokens"
    )


def _documents(shards: Sequence[ShardEntry], how: str) -> int:
    """Those that were split; by the tail, each has a part on both sides."""
    return sum(shard.documents for shard in shards if how != "tail" or shard.split == "train")


def _total(shards: Sequence[ShardEntry], field: str) -> int:
    return sum(getattr(shard, field) for shard in shards)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
