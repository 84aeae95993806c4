"""What becomes of an error on its way out."""

import errno
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from gptscale.cli import main
from gptscale.cli.main import INTERRUPTED, USERS_MISTAKE, _refusal
from gptscale.errors import TakenOverError, TrainingError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (errno.EACCES, "a/b.bin: Permission denied; let this user read and write it, or choose another path"),
        (errno.ENOTDIR, "a/b.bin: Not a directory; move away what is there, or choose another path"),
        (
            errno.ELOOP,
            "a/b.bin: Too many levels of symbolic links, so it leads nowhere; put the file there in its place",
        ),
    ],
)
def test_a_path_that_the_system_refuses_is_one_line(number: int, line: str) -> None:
    assert _refusal(OSError(number, os.strerror(number), "a/b.bin")) == line


def test_a_path_that_the_locale_has_no_bytes_for_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    error = UnicodeEncodeError("ascii", "runs/tïny", 6, 7, "ordinal not in range(128)")
    assert _refusal(error) is None
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    said = _refusal(error)
    assert said is not None
    assert said.startswith("'runs/tïny' cannot be a path or a word in this locale; set PYTHONUTF8=1")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_command_whose_output_is_closed_does_its_work(tmp_path: Path, closed: str) -> None:
    command = f"{sys.executable} -m gptscale plan {ROOT}/configs/gpt2-124m.yaml {closed}"
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert ("verdict" in done.stdout) is (closed == "2>&-")


def test_a_character_that_cannot_be_shown_is_its_code(tmp_path: Path) -> None:
    code = "import sys; from gptscale.cli import main; main._open_streams(); print(chr(0xFFFD) + chr(0xE9))"
    env = {**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=env, timeout=60, check=True)
    assert done.stdout == b"\\ufffd\xe9\n"


def test_other_errors_keep_their_traceback() -> None:
    for error in (FileNotFoundError(errno.ENOENT, "gone", "a"), PermissionError("no path"), ValueError("ours")):
        assert _refusal(error) is None


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The codes of exits that skip the interpreter's clean-up; others follow."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(sys, "argv", ["gptscale", "train"])
    return codes


def ends_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let the command end with an error."""

    def fail(**options: object) -> None:
        raise error

    monkeypatch.setattr(main, "app", fail)
    with pytest.raises(SystemExit):
        main.main()


@pytest.mark.parametrize(
    ("error", "at_once"), [(KeyboardInterrupt(), [INTERRUPTED]), (TrainingError("the disk is gone"), [])]
)
def test_an_interrupted_command_does_not_wait_for_a_checkpoint(
    monkeypatch: pytest.MonkeyPatch, left: list[int], error: BaseException, at_once: list[int]
) -> None:
    written = Event()
    with ThreadPoolExecutor(1, thread_name_prefix="checkpoint") as disk:
        disk.submit(written.wait)
        ends_with(monkeypatch, error)
        written.set()
    assert left == at_once


def test_an_interrupted_command_that_writes_nothing_cleans_up(monkeypatch: pytest.MonkeyPatch, left: list[int]) -> None:
    ends_with(monkeypatch, KeyboardInterrupt())
    assert left == []


def test_a_start_whose_run_goes_on_elsewhere_leaves_before_anything_marks_it_as_ended(
    monkeypatch: pytest.MonkeyPatch, left: list[int]
) -> None:
    ends_with(monkeypatch, TakenOverError("by a later start"))
    assert left == [USERS_MISTAKE]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is always full")
@pytest.mark.parametrize("unbuffered", ["", "1"])  # the disk is full at the first line, or at the end
def test_an_output_on_a_full_disk_is_one_line(unbuffered: str) -> None:
    command = [sys.executable, "-m", "gptscale", "plan", str(ROOT / "configs" / "gpt2-124m.yaml"), "--gpus", "8"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        done = subprocess.run([*command, "--tokens", "1e9"], stdout=full, stderr=subprocess.PIPE, text=True, env=env)
    assert done.stderr == "gptscale: the output cannot be written: No space left on device; free some space there\n"
    assert done.returncode == 2


def test_a_closed_input_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    main._open_streams()
    with sys.stdin:
        assert sys.stdin.read() == ""
