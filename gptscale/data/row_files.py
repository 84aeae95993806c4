"""Files whose rows are read where they lie, by number, one file after another."""

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gptscale.data.columns import Columns
from gptscale.data.texts import Texts


@dataclass(frozen=True)
class RowFiles(ABC):
    """The rows of several files."""

    first_rows: tuple[int, ...]
    """The number of each file's first row; the last is the number of all rows."""
    columns: Columns
    path: str
    description: dict[str, Any]

    def __len__(self) -> int:
        return self.first_rows[-1]

    def read(self, start: int, stop: int) -> Iterator[Texts]:
        """The texts of rows start to stop - 1, in batches."""
        number = bisect_right(self.first_rows, start) - 1
        while start < stop:
            first, after = self.first_rows[number], self.first_rows[number + 1]
            yield from self.read_file(number, start - first, min(stop, after) - first)
            start, number = after, number + 1

    @abstractmethod
    def read_file(self, number: int, start: int, stop: int) -> Iterator[Texts]:
        """The texts of rows start to stop - 1 of one file, in batches."""
