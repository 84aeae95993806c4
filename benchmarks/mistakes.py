"""What somebody asked for wrongly is one line: the arguments of all scripts, and how they end."""

import sys
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from subprocess import CalledProcessError

from pydantic import ValidationError

from gptscale.errors import GptscaleError

USERS_MISTAKE = 2


def at_least(least: int) -> Callable[[str], int]:
    """The type of an argument that is a whole number from some on."""

    def number(text: str) -> int:
        if int(text) < least:
            raise ArgumentTypeError(f"{text} is below {least}")
        return int(text)

    return number


positive = at_least(1)


def folder_with(name: str) -> Callable[[str], str]:
    """The type of an argument that is a folder, known by a file in it."""

    def folder(text: str) -> str:
        if not Path(text, name).is_file():
            raise ArgumentTypeError(f"{text} holds no {name}")
        return text

    return folder


def file(text: str) -> Path:
    """The type of an argument that is a file."""
    if not Path(text).is_file():
        raise ArgumentTypeError(f"{text} is no file")
    return Path(text)


def told(main: Callable[[], int | None]) -> int:
    """What a script ends with: its own exit code, or 2 and a line for what whoever started it can mend."""
    try:
        return main() or 0
    except ValidationError as error:
        said = "; ".join(problem["msg"].removeprefix("Value error, ") for problem in error.errors())
    except CalledProcessError as error:
        said = f"{' '.join(map(str, error.cmd))} ended with exit code {error.returncode}; its words stand above"
    except (GptscaleError, OSError) as error:
        said = str(error)
    print(f"{Path(sys.argv[0]).name}: {said}", file=sys.stderr)
    return USERS_MISTAKE
