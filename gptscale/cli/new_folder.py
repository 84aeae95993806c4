"""A folder that a verb makes: whole, or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gptscale.errors import WeightsError


@contextmanager
def new_folder(to: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name at the end; if something fails, nothing is left.

    Raises WeightsError if the name is taken or the place cannot be written.
    """
    if to.exists():
        raise WeightsError(f"--to {to} exists; choose another folder, or move it away")
    unfinished = to.with_name(f".unfinished-{to.name}")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        yield unfinished
        unfinished.rename(to)
    except OSError as error:
        raise WeightsError(f"cannot write {to} ({error}); choose another folder, or make room there") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
