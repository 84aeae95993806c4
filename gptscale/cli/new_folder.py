"""A folder that a verb makes: whole, or not at all."""

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from gptscale.errors import WeightsError
from gptscale.runtime.scratch import Scratch


@contextmanager
def new_folder(to: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name at the end; if something fails, nothing is left.

    Raises WeightsError if the name is taken or the place cannot be written.
    """
    if to.exists():
        raise _exists(to)
    unfinished = f".unfinished-{to.name}-"
    with ExitStack() as stack:
        try:
            to.parent.mkdir(parents=True, exist_ok=True)
            scratch = stack.enter_context(closing(Scratch(to.parent, unfinished)))
            folder = scratch.path / to.name  # with the permissions of any new folder
            folder.mkdir()
            yield folder
            folder.rename(to)
        except OSError as error:
            if to.exists():  # another command was quicker
                raise _exists(to) from error
            refused = str(error.filename or to)
            if unfinished not in refused and not to.is_relative_to(refused):
                raise  # of what is read to fill it
            raise WeightsError(f"cannot write {to} ({error}); choose another folder, or make room there") from error


def _exists(to: Path) -> WeightsError:
    return WeightsError(f"--to {to} exists; choose another folder, or move it away")
