"""Paths become sorted files of one kind, or an error that names data.source.path."""

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from gptscale.config.data import SourceConfig
from gptscale.data import file_identity
from gptscale.data.file_identity import describe_files, hash_texts, stamp
from gptscale.data.source_files import expand, find_files, is_local, stamp_files, unreadable_is_said
from gptscale.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ["b.txt", "a.md", "deep/c.py", ".hidden/d.txt", "deep/.e.txt", "image.png", "packed.txt.gz"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def found(path: Path | str, **fields: Any) -> tuple[str, list[str]]:
    kind, files = find_files(SourceConfig(path=str(path), **fields))
    return kind, [file.name for file in files]


def test_a_folder_is_searched_to_its_depth_without_hidden_files(folder: Path) -> None:
    assert found(folder) == ("text", ["a.md", "b.txt", "c.py", "packed.txt.gz"])


def test_a_link_to_a_folder_is_followed_and_never_in_a_circle(folder: Path, tmp_path_factory: Any) -> None:
    far = tmp_path_factory.mktemp("far")
    (far / "z.txt").write_text("z")
    before = found(folder)[1]
    (folder / "zz").symlink_to(far)
    (far / "back").symlink_to(folder)
    assert found(folder)[1] == [*before, "z.txt"]


def test_a_folder_has_its_own_name_wherever_a_link_to_it_sorts(tmp_path: Path) -> None:
    for name in ("v1", "v2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.txt").write_text(name)
    (tmp_path / "current").symlink_to("v2")
    (tmp_path / "v1" / "a").symlink_to(tmp_path / "v2")
    _, files = find_files(SourceConfig(path=str(tmp_path)))
    assert files == [tmp_path / "v1" / "x.txt", tmp_path / "v2" / "x.txt"]


@pytest.mark.parametrize("path", ["", "*.txt"])
def test_a_file_and_links_to_it_are_read_once(tmp_path: Path, path: str, tmp_path_factory: Any) -> None:
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "a-link.txt").symlink_to("b.txt")
    far = tmp_path_factory.mktemp("far") / "far"
    far.write_text("far")
    for name in ("c.txt", "d.txt"):
        (tmp_path / name).symlink_to(far)
    assert found(f"{tmp_path}/{path}") == ("text", ["b.txt", "c.txt"])


def test_endings_may_be_in_capitals(tmp_path: Path) -> None:
    for name in ("a.jsonl", "B.JSONL", "C.JSONL.GZ", "D.Json.ZST"):
        (tmp_path / name).write_text("")
    assert found(tmp_path) == ("json", ["B.JSONL", "C.JSONL.GZ", "D.Json.ZST", "a.jsonl"])


def test_text_in_a_compression_that_is_not_read_is_not_passed_over(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl.xz", "c.JSONL.BZ2", "d.jsonl.zstd", "e.txt.xz"):
        (tmp_path / name).write_text("")
    match = r"the folder holds b.jsonl.xz and 2 more such files, in a compression that is not read; compress with gzip"
    with pytest.raises(DataError, match=match):
        found(tmp_path, format="json")
    with pytest.raises(DataError, match=r"the glob holds e.txt.xz, in a compression that is not read"):
        found(tmp_path / "[ae]*")


def test_files_that_are_passed_over_are_counted(folder: Path) -> None:
    said: list[str] = []
    (folder / "z.csv").write_text("")
    find_files(SourceConfig(path=str(folder)), said.append)
    assert said == [
        f"data.source.path={folder}: 2 of 6 files are passed over, such as {folder}/image.png, whose ending is not one "
        "of text"
    ]
    find_files(SourceConfig(path=str(folder / "b.txt")), said.append)
    assert len(said) == 1


def test_what_is_not_here_has_no_stamps(folder: Path) -> None:
    for path in ("owner/name", "python-library", str(folder / "missing.txt")):
        assert stamp_files(SourceConfig(path=path), print) == {}
    stat = (folder / "b.txt").stat()
    stamps = {folder / "b.txt": (stat.st_size, stat.st_mtime_ns)}
    assert stamp_files(SourceConfig(path=str(folder / "b.txt")), print) == stamps
    assert stamp_files(SourceConfig(path=str(folder / "b.txt"), format="hub"), print) == {}
    assert stamp(folder / "missing.txt") is None


def test_a_glob_gives_its_matches_in_order(folder: Path) -> None:
    assert found(folder / "*.txt") == ("text", ["b.txt"])
    assert found(folder / "**" / "[bc].*") == ("text", ["b.txt", "c.py"])
    assert found(folder / "*.png", format="text") == ("text", ["image.png"])


@pytest.mark.parametrize(
    ("name", "kind"), [("x.jsonl", "json"), ("x.json.gz", "json"), ("x.PARQUET", "parquet"), ("x.py", "text")]
)
def test_a_files_ending_says_its_kind(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).write_text("")
    assert found(tmp_path / name) == (kind, [name])


def test_a_format_overrules_the_ending(folder: Path) -> None:
    assert found(folder / "image.png", format="text") == ("text", ["image.png"])


def test_an_ending_without_kind_asks_for_the_format(folder: Path) -> None:
    with pytest.raises(DataError, match=r"image.png has an ending that says no format; set data.source.format"):
        found(folder / "image.png")


def test_a_folder_of_two_kinds_asks_for_one(folder: Path) -> None:
    (folder / "x.jsonl").write_text("")
    with pytest.raises(DataError, match="the folder holds json and text files; choose one with data.source.format"):
        found(folder)
    assert found(folder, format="json") == ("json", ["x.jsonl"])


def test_a_folder_without_usable_files_says_what_would_be(folder: Path) -> None:
    with pytest.raises(DataError, match=r"the folder holds no file that ends in .parquet, .pq"):
        found(folder, format="parquet")
    with pytest.raises(DataError, match=r"the glob holds no file that ends in .arrow, .json, "):
        found(folder / "*.png")


def test_a_missing_file_is_answered_with_the_nearest(folder: Path) -> None:
    with pytest.raises(DataError, match=r"data.source.path=.*bb.txt does not exist; did you mean .*/b.txt\?"):
        found(folder / "bb.txt")
    with pytest.raises(DataError, match=r"data.source.path=/nowhere/x.txt does not exist$"):
        found("/nowhere/x.txt")


def test_a_glob_without_match_is_named(folder: Path) -> None:
    with pytest.raises(DataError, match=r"data.source.path=.*\*.zip matches no file"):
        found(folder / "*.zip")


@pytest.mark.parametrize("path", ["/x", "./x", "../x", "~/x", "x*.foo", "corpus/x.txt", "x.jsonl.gz", "~nosuchuser/x"])
def test_these_are_paths(path: str) -> None:
    assert is_local(path)


@pytest.mark.parametrize("path", ["wikitext", "HuggingFaceFW/fineweb-edu", "allenai/c4", "x" * 300])
def test_these_are_hub_names(path: str) -> None:
    assert not is_local(path)


def test_files_are_known_by_name_size_and_content(folder: Path) -> None:
    expected = {"name": "deep/c.py", "bytes": 9, "sha256": hashlib.sha256(b"deep/c.py").hexdigest()}
    assert describe_files([folder / "deep" / "c.py"], folder) == [expected]


def test_files_of_many_bytes_are_known_by_size_and_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_identity, "HASHED_BYTES", 4)
    path = folder / "b.txt"
    expected = {"name": "b.txt", "bytes": 5, "mtime_ns": path.stat().st_mtime_ns}
    assert describe_files([path], folder) == [expected]


def test_a_name_that_is_no_utf8_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"a-\xff.txt")
    path.write_text("x")
    with pytest.raises(
        DataError, match=r"the path '.*/a-\\udcff.txt' is no UTF-8, and so no manifest can hold it; ren"
    ):
        describe_files([path], tmp_path)


def test_the_hash_of_texts_sees_their_borders() -> None:
    assert hash_texts(["ab", "c"]) != hash_texts(["a", "bc"])
    assert hash_texts(["\ud800"]) != hash_texts([])


def test_an_unknown_users_home_is_one_line() -> None:
    match = r"data.source.path=~nosuchuser/x.txt begins with the home of a user that is not known here; write the path"
    with pytest.raises(DataError, match=match):
        found("~nosuchuser/x.txt")
    assert expand("~") == Path.home()


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="needs a device")
def test_a_device_is_no_text() -> None:
    with pytest.raises(DataError, match=r"data.source.path=/dev/null is neither a file nor a folder$"):
        found("/dev/null")


def test_a_folder_that_may_not_be_listed_is_not_passed_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    def scandir(path: str | Path) -> Any:
        if Path(path).name in ("deep", ".hidden"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError, match=r"/deep"):
        found(folder)


def test_a_missing_file_in_a_folder_that_may_not_be_listed_has_no_nearest(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(path: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", forbidden)
    with pytest.raises(DataError, match=r"bb.txt does not exist$"):
        found(folder / "bb.txt")


def test_a_refusal_names_the_setting_and_a_file_below_it() -> None:
    with (
        pytest.raises(DataError, match=r"^data.source.path=here cannot be read: Denied \(here/a.txt\)$"),
        unreadable_is_said("here"),
    ):
        raise PermissionError(13, "Denied", "here/a.txt")
    with pytest.raises(DataError, match=r"^data.source.path=here cannot be read: Denied$"), unreadable_is_said("here"):
        raise PermissionError(13, "Denied", "here")
