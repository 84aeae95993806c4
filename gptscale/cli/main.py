"""The `gptscale` command. A verb's heavy imports wait until the verb runs."""

import os
import sys
import threading
import traceback
from collections.abc import Callable
from errno import EDQUOT, ELOOP, ENAMETOOLONG, ENOSPC
from io import TextIOWrapper
from typing import NoReturn

import typer

from gptscale.cli import (
    adopt,
    demo,
    doctor,
    evaluate,
    export,
    generate,
    import_weights,
    inspect,
    plan,
    prepare,
    prove_resume,
    report,
    trace,
    train,
    verify,
)
from gptscale.errors import GptscaleError, PeerError, RankError, TakenOverError
from gptscale.runtime.launch import check_launch_variables, launched_rank, launched_world

FULL = (ENOSPC, EDQUOT)
USERS_MISTAKE, OUR_MISTAKE, INTERRUPTED = 2, 1, 130

WRITER = "checkpoint"
"""How the names of threads begin that write checkpoints (checkpoint/store.py)."""

GOES_ON = {
    "prepare": "; the same command goes on with what is not finished",
    **dict.fromkeys(("train", "demo"), "; the same command goes on from the last checkpoint"),
}
"""What becomes of a verb that was interrupted; the others begin anew."""

app = typer.Typer(
    help="Pre-train GPT-2-family language models.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
VERBS: dict[str, Callable[..., None]] = {
    "prepare": prepare.run_prepare,
    "adopt": adopt.run_adopt,
    "plan": plan.run_plan,
    "train": train.run_train,
    "evaluate": evaluate.run_evaluate,
    "generate": generate.run_generate,
    "report": report.run_report,
    "import": import_weights.run_import,
    "export": export.run_export,
    "verify": verify.run_verify,
    "inspect": inspect.run_inspect,
    "trace": trace.run_trace,
    "prove-resume": prove_resume.run_prove_resume,
    "doctor": doctor.run_doctor,
    "demo": demo.run_demo,
}
for name, run in VERBS.items():
    app.command(name)(run)


def main() -> None:
    """Run a verb; one line and exit code 2 for a user's mistake, a traceback and 1 for ours."""
    _open_streams()
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    try:
        check_launch_variables()
    except GptscaleError as error:
        print(f"gptscale: {error}", file=sys.stderr)
        sys.exit(USERS_MISTAKE)
    try:
        code = app(standalone_mode=False)
        if code == INTERRUPTED:  # Typer's word for KeyboardInterrupt
            raise KeyboardInterrupt
        _end(code if isinstance(code, int) else 0)
    except RankError as error:  # of this rank only, so it speaks for itself
        print(f"gptscale: {error}", file=sys.stderr)
        _end(OUR_MISTAKE)
    except PeerError:
        _end(OUR_MISTAKE)
    except GptscaleError as error:
        _tell_once(f"gptscale: {error}")
        _end(USERS_MISTAKE, at_once=isinstance(error, TakenOverError))
    except KeyboardInterrupt:
        if launched_rank() == 0:
            print(f"gptscale: interrupted{GOES_ON.get(sys.argv[1], '')}", file=sys.stderr)
        _end(INTERRUPTED, at_once=any(thread.name.startswith(WRITER) for thread in threading.enumerate()))
    except Exception as error:
        if refusal := _refusal(error):
            print(f"gptscale: {refusal}", file=sys.stderr)
            _end(USERS_MISTAKE)
        if hasattr(error, "format_message"):  # Typer's usage errors, whose class is not public
            print(f"gptscale: {error.format_message()}; see gptscale --help", file=sys.stderr)
            _end(USERS_MISTAKE)
        traceback.print_exc()
        if launched_world() > 1:
            print(f"gptscale: rank {launched_rank()} failed with {type(error).__name__}: {error}", file=sys.stderr)
        _end(OUR_MISTAKE)


def _open_streams() -> None:
    """Give a process whose streams were closed others, and let a character that cannot be read or shown be its code.

    A closed input is one that has ended.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  # to the process' end
        elif isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _refusal(error: Exception) -> str | None:
    """What to tell where the system refuses a path, in whichever library that was; None for any other error."""
    if isinstance(error, UnicodeEncodeError) and sys.getfilesystemencoding() != "utf-8":
        return f"{error.object!r} cannot be a path or a word in this locale; set PYTHONUTF8=1, or LC_ALL=C.UTF-8"
    if isinstance(error, OSError) and error.errno in FULL:
        return f"{error.filename or 'the output'} cannot be written: {error.strerror}; free some space there"
    if isinstance(error, OSError) and error.errno == ENAMETOOLONG:
        return f"{error.filename or 'a path'}: {error.strerror}; choose a shorter one"
    if isinstance(error, OSError) and error.errno == ELOOP:
        return f"{error.filename or 'a path'}: {error.strerror}, so it leads nowhere; put the file there in its place"
    if not isinstance(error, PermissionError | NotADirectoryError | IsADirectoryError) or error.filename is None:
        return None
    mend = "let this user read and write it" if isinstance(error, PermissionError) else "move away what is there"
    return f"{error.filename}: {error.strerror}; {mend}, or choose another path"


def _tell_once(line: str) -> None:
    """Print a line that all ranks have, once."""
    if launched_world() == 1:
        print(line, file=sys.stderr)
        return
    from gptscale.runtime.telling import tell_once

    tell_once(lambda: print(line, file=sys.stderr, flush=True))


def _end(code: int, *, at_once: bool = False) -> NoReturn:
    """Leave the process. One of several skips the interpreter's clean-up, which can abort in Gloo's threads.

    So does one that was interrupted while a thread writes a checkpoint, for which it would wait, and one whose run
    goes on elsewhere, which W&B would mark as ended.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:  # its reader is gone, which Python would say again at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if error.errno in FULL and stream is sys.stdout and code == 0:
                print(f"gptscale: {_refusal(error)}", file=sys.stderr)
                code = USERS_MISTAKE
    if at_once or launched_world() > 1:
        os._exit(code)
    sys.exit(code)
