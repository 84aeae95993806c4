"""The data section of a config: corpora, and the text that they are made from."""

from pathlib import Path
from string import Formatter
from typing import Literal, Self

from pydantic import PositiveFloat, field_validator, model_validator

from gptscale.config.section import Count, Folder, Fraction, Section, Seed


class SourceConfig(Section):
    """The text a corpus is made from."""

    path: str
    """A file, a glob, a folder, a Hub dataset's name, or python-library for the text inside Python."""
    format: Literal["auto", "text", "json", "parquet", "arrow", "hub", "embedded"] = "auto"
    """How to read it; auto goes by the file's ending, and takes what is no file for a Hub name."""
    name: str | None = None
    """The Hub dataset's configuration, such as sample-10BT; null takes its default."""
    revision: str | None = None
    """The Hub dataset's commit; null takes today's newest and records it."""
    split: str = "train"
    """The Hub dataset's split."""
    data_files: tuple[str, ...] = ()
    """Files of the Hub dataset, by name or pattern; an empty list takes those of name and split."""
    streaming: bool = False
    """Whether files are read from where they are, never kept: one unit for each file, whatever its length."""
    text_column: str = "text"
    """The column that holds a document's text."""
    template: str | None = None
    """Joins columns to a document's text, such as "{title}: {body}"; null takes text_column alone."""
    min_characters: Count | None = None
    """Documents with fewer characters (Unicode code points) are left out; null keeps them."""
    max_characters: Count | None = None
    """Documents with more characters are left out; null keeps them."""
    documents: Literal["file", "paragraph", "line"] = "file"
    """What one document of a plain text file is."""

    @field_validator("template")
    @classmethod
    def _template_names_columns(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            fields = [field for _, *field in Formatter().parse(value) if field[0] is not None]
        except ValueError as error:
            raise ValueError(f"{value!r} is no template ({error}); write it like {{title}}: {{body}}") from None
        if not fields or not all(name and not spec and not conversion for name, spec, conversion in fields):
            raise ValueError(f"{value!r} names no columns; write it like {{title}}: {{body}}")
        return value

    @model_validator(mode="after")
    def _some_lengths(self) -> Self:
        if (self.min_characters or 0) > (self.max_characters or self.min_characters or 0):
            raise ValueError(
                f"min_characters={self.min_characters} is above max_characters={self.max_characters}; lower it"
            )
        return self


class MixedCorpus(Section):
    """A prepared corpus in a mixture."""

    dir: Folder
    """Its folder."""
    weight: PositiveFloat
    """Its share of the samples, against the weights of the others."""
    name: str | None = None
    """What it is called in the log; null takes the folder's name."""

    @property
    def label(self) -> str:
        """What it is called."""
        return self.name or self.dir.name


class DataConfig(Section):
    """A corpus: where it is, what it is made from, and how it is cut. Or several prepared ones, mixed."""

    dir: Folder | None = None
    """The corpus folder that `prepare` writes and `train` reads; null with a mixture."""
    source: SourceConfig | None = None
    """What `prepare` reads; null for a corpus that is there already."""
    mixture: tuple[MixedCorpus, ...] = ()
    """Corpora to train on by weight, in place of dir; each was prepared by a config of its own, or adopted."""
    tokenizer: str = "gpt2"
    """gpt2, bytes, or any encoding that tiktoken knows."""
    tokenizer_engine: Literal["gigatoken", "tiktoken"] = "gigatoken"
    """Who encodes gpt2: gigatoken with tiktoken as its judge, or tiktoken alone. The ids are the same."""
    end_of_text: bool = True
    """Whether an end-of-text token stands before every document."""
    split: Literal["hash", "tail"] = "hash"
    """hash: whole documents, chosen by their text; tail: the last characters of every document."""
    validation_fraction: Fraction = 0.005
    """Share of the documents (hash) or of the characters (tail) kept for validation."""
    split_seed: Seed = 0
    """Another number chooses other validation documents (hash)."""
    documents_per_shard: Count = 100_000
    """Source documents in one work unit, which becomes one training and one validation shard."""
    stride: Count | None = None
    """Tokens between the starts of two samples; null means context_length, so nothing overlaps."""
    shuffle_block_samples: Count | None = None
    """Shuffles blocks of so many neighbouring samples, and within them, for disks that read in sequence; null: all."""

    @property
    def folder(self) -> Path:
        """The one corpus' folder."""
        assert self.dir is not None, "this config mixes corpora"
        return self.dir

    @property
    def given_source(self) -> SourceConfig:
        """What the one corpus is made from."""
        assert self.source is not None, "open_job comes first"
        return self.source

    @model_validator(mode="after")
    def _one_corpus_or_a_mixture(self) -> Self:
        if (self.dir is None) != bool(self.mixture):
            raise ValueError("give either dir, the folder of one corpus, or mixture, a list of corpora with weights")
        if self.mixture and self.source is not None:
            raise ValueError("source belongs to the one corpus of dir; prepare each corpus of a mixture on its own")
        labels = [corpus.label for corpus in self.mixture]
        if len(set(labels)) < len(labels):
            raise ValueError(f"two corpora of the mixture are called the same ({', '.join(labels)}); give them names")
        return self
