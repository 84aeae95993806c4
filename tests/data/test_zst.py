"""A Zstandard file that was cut anywhere is noticed; a whole one is not, however it was written."""

import random
from pathlib import Path

import pytest
import zstandard

from gptscale.data.zst import check_whole
from gptscale.errors import DataError

NUMBERS = random.Random(0)
TEXT = NUMBERS.randbytes(150_000) + bytes(300_000) + b"text " * 60_000  # raw, repeated and compressed blocks
SKIPPABLE = (0x184D2A53).to_bytes(4, "little") + (7).to_bytes(4, "little") + b"ignored"


def packed(content: bytes, checksum: bool, size: bool) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=checksum, write_content_size=size).compress(content)


@pytest.mark.parametrize("checksum", [False, True])
@pytest.mark.parametrize("size", [False, True])
def test_only_whole_files_are_taken(tmp_path: Path, checksum: bool, size: bool) -> None:
    frames = [packed(TEXT, checksum, size), SKIPPABLE, packed(b"", checksum, size), packed(b"x" * 10, checksum, size)]
    whole = b"".join(frames)
    ends = {sum(map(len, frames[:number])) for number in range(len(frames) + 1)}
    file = tmp_path / "a.txt.zst"
    file.write_bytes(whole)
    check_whole([file], "here")
    later = range(len(whole) - 60, len(whole))
    for cut in {*later, *(NUMBERS.randrange(20, len(whole)) for _ in range(300))} - ends:
        file.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"data.source.path=here cannot be read: a.txt.zst was cut short; copy it"):
            check_whole([file], "here")


def test_what_is_no_zstandard_is_left_to_its_readers(tmp_path: Path) -> None:
    (tmp_path / "a.txt.zst").write_bytes(b"plain text, longer than a header")
    check_whole([tmp_path / "a.txt.zst"], "here")
