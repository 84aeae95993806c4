"""The corpus inside Python."""

import sys
import sysconfig
from pathlib import Path

import pytest

from gptscale.data import embedded
from gptscale.data.embedded import python_library, python_version


def test_it_holds_the_topics_and_the_library_and_no_tests() -> None:
    texts = python_library()
    assert texts[0].startswith('The "assert" statement')
    assert Path(sysconfig.get_path("stdlib"), "argparse.py").read_text(encoding="utf-8") in texts
    assert 5_000_000 < sum(map(len, texts)) < 20_000_000
    assert all(texts)


def test_it_is_the_same_every_time() -> None:
    assert python_library() == python_library()
    assert python_version().endswith(".".join(map(str, sys.version_info[:3])))


def test_files_come_in_the_order_of_their_paths_and_some_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = ["b.py", "a/z.py", "a.py", "test/t.py", "x/tests/t.py", "site-packages/s.py", "a/note.txt"]
    for name in [*files, "_sysconfigdata_linux.py", "config-3-linux/c.py"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "latin.py").write_bytes(b"\xff")
    monkeypatch.setattr(embedded.sysconfig, "get_path", lambda name: str(tmp_path))
    assert python_library()[-3:] == ["a/z.py", "a.py", "b.py"]  # folder a comes before file a.py
