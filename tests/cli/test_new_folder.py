"""A folder that a verb makes is whole, also where two make the same."""

import errno
from pathlib import Path

import pytest

from gptscale.cli.new_folder import new_folder
from gptscale.errors import WeightsError


def test_it_gets_its_name_at_the_end_with_the_permissions_of_any_folder(tmp_path: Path) -> None:
    with new_folder(tmp_path / "a" / "b") as folder:
        (folder / "x").write_text("x")
        assert not (tmp_path / "a" / "b").exists()
    (tmp_path / "like").mkdir()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    assert (tmp_path / "a" / "b").stat().st_mode == (tmp_path / "like").stat().st_mode
    assert (tmp_path / "a" / "b" / "x").read_text() == "x"


def fill(folder: Path, text: str) -> None:
    (folder / "x").write_text(text)
    if not text:
        raise ZeroDivisionError


def test_nothing_stays_where_it_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "a") as folder:
        fill(folder, "")
    assert list(tmp_path.iterdir()) == []


def test_of_two_that_make_the_same_the_first_to_end_is_whole(tmp_path: Path) -> None:
    slow, quick = new_folder(tmp_path / "a"), new_folder(tmp_path / "a")
    mine, theirs = slow.__enter__(), quick.__enter__()
    fill(mine, "mine")
    fill(theirs, "theirs")
    quick.__exit__(None, None, None)
    with pytest.raises(WeightsError, match=r"^--to .*/a exists; choose another folder"):
        slow.__exit__(None, None, None)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a" / "x").read_text() == "theirs"


def test_a_disk_that_refuses_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = r"cannot write .*file/a .*; choose another folder, or make room there"
    with pytest.raises(WeightsError, match=said), new_folder(tmp_path / "file" / "a"):
        pass


def test_a_refusal_of_what_fills_it_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), new_folder(tmp_path / "a"):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "source"))
    assert list(tmp_path.iterdir()) == []
