"""The shards of one split of a unit, and the tokens on their way there."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gptscale.data.blocks import hash_blocks
from gptscale.data.manifest import ShardEntry, Split
from gptscale.data.shard import MOST_TOKENS, ShardWriter, Tokens, starts_path
from gptscale.data.split import Documents, joined
from gptscale.data.texts import Offsets, Texts, cut_at, flat
from gptscale.data.tokenizer import Tokenizer
from gptscale.data.vocabulary import Ids
from gptscale.disk import hash_file

BATCH_BYTES = 2**23
"""Of text to the tokenizer at once; a longer document is a batch of its own."""

_FEW_BYTES = 2**21  # wait for more
_LONGEST = 3


@dataclass
class UnitShard:
    """A shard that is being written."""

    split: Split
    writer: ShardWriter
    end_of_text: int | None
    rows: list[Offsets] = field(default_factory=list)  # (documents,) of each batch
    starts: list[Offsets] = field(default_factory=list)  # (documents,) of each batch
    text_bytes: int = 0

    def add(self, documents: Documents, tokenizer: Tokenizer) -> None:
        """Encode documents and write their tokens."""
        self.rows.append(documents.rows)
        self.text_bytes += len(flat(documents.texts)[0])
        if len(documents.rows) == 1:
            self._add_one(documents.texts, tokenizer)
            return
        ids, offsets = tokenizer.encode_texts(documents.texts)
        if self.end_of_text is not None:
            ids, offsets = _with_end_of_text(ids, offsets, self.end_of_text, self.writer.dtype)
        self.starts.append(offsets[:-1] + self.writer.tokens)
        self.writer.append(ids)

    def _add_one(self, text: Texts, tokenizer: Tokenizer) -> None:
        """A document that may be of any length, some megabytes at a time."""
        self.starts.append(np.array([self.writer.tokens]))
        if self.end_of_text is not None:
            self.writer.append(np.array([self.end_of_text], self.writer.dtype))
        parts = cut_at(text, tokenizer.cuts(flat(text)[0], BATCH_BYTES))
        for number in range(len(parts)):
            self.writer.append(tokenizer.encode_texts(parts.slice(number, 1))[0])

    def finish(self) -> ShardEntry:
        """Force the shard to disk, give it its name, read it back and hash it."""
        path, tokens = self.writer.path, self.writer.tokens
        starts = np.stack([np.concatenate(self.starts), np.concatenate(self.rows)], axis=1)
        self.writer.finish(starts)
        sha256, blocks = hash_blocks(path)
        return ShardEntry(
            file=path.name,
            split=self.split,
            tokens=tokens,
            documents=len(starts),
            text_bytes=self.text_bytes,
            sha256=sha256,
            blocks_sha256=blocks,
            starts_sha256=hash_file(starts_path(path)),
            longest=_longest(np.diff(starts[:, 0], append=tokens), starts[:, 1]),
        )


@dataclass
class Side:
    """The shards of one split: none without text, and further ones where there is more than a shard can count."""

    open_shard: Callable[[int], UnitShard]
    """Opens the shard of a number, from 0."""
    shards: list[UnitShard] = field(default_factory=list)
    waiting: list[Documents] = field(default_factory=list)
    waiting_bytes: int = 0

    def add(self, documents: Documents, tokenizer: Tokenizer) -> None:
        """Take documents; they are encoded when there are enough of them, since each call of an engine costs."""
        if len(documents.rows) == 0:
            return
        if len(flat(documents.texts)[0]) > BATCH_BYTES:  # a document that is cut only if it is alone
            self.encode_waiting(tokenizer)
        self.waiting.append(documents)
        self.waiting_bytes += len(flat(documents.texts)[0])
        if self.waiting_bytes >= _FEW_BYTES:
            self.encode_waiting(tokenizer)

    def encode_waiting(self, tokenizer: Tokenizer) -> None:
        """Encode what was taken and is not encoded yet."""
        if not self.waiting:
            return
        documents = joined(self.waiting)
        most = self.waiting_bytes + len(documents.rows)  # a token is a byte at the least; each document has its end
        self.waiting, self.waiting_bytes = [], 0
        if not self.shards or self.shards[-1].writer.tokens + most > MOST_TOKENS:
            self.shards.append(self.open_shard(len(self.shards)))
        self.shards[-1].add(documents, tokenizer)


def _with_end_of_text(ids: Ids, offsets: Offsets, end_of_text: int, dtype: Any) -> tuple[Tokens, Offsets]:
    """The ids with an end-of-text token before every document."""
    documents = len(offsets) - 1
    moved = offsets + np.arange(documents + 1)
    wider: Tokens = np.empty(len(ids) + documents, dtype)
    is_text = np.ones(len(wider), bool)
    is_text[moved[:-1]] = False
    wider[is_text] = ids
    wider[moved[:-1]] = end_of_text
    return wider, moved


def _longest(tokens: Offsets, rows: Offsets) -> tuple[tuple[int, int], ...]:
    first = np.lexsort((rows, -tokens))[:_LONGEST]
    return tuple((int(tokens[i]), int(rows[i])) for i in first)
