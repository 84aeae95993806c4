"""What torch.compile keeps on disk from start to start, without what a killed compiler left unfinished there."""

import fcntl
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import torch

from gptscale.errors import TrainingError
from gptscale.runtime.engine import Engine
from gptscale.runtime.launch import launched_local_rank

WHOLE_ELF_BYTES = 64
"""The header of a 64-bit ELF file, which says where the table of its sections is."""

WHERE = "TORCHINDUCTOR_CACHE_DIR"
ALLOWED = "autograd_cache_allow_custom_autograd_functions"
OWN_GENERATORS = "graphsafe_rng_functionalization"


def find_compiled(engine: Engine) -> None:
    """Use what earlier starts have compiled, without what a compiler could not finish. All ranks call this together."""
    keep_in_users_cache()
    keep_traced_graphs()
    seed_what_is_computed_again()
    engine.agree(lambda: check_compiler(engine.device))
    for path in engine.agree(remove_halves):
        engine.say(f"removed {path}: a compiler was killed while it wrote it; it is compiled again")


def keep_in_users_cache() -> None:
    """Let torch keep what it compiles in the user's cache, unless TORCHINDUCTOR_CACHE_DIR says where.

    Its own place in /tmp is gone with the machine's next start, and a job's /tmp often with the job. Where no such
    folder can be made or locked (some networks' disks), torch's own place serves. Torch sets the variable too, to its
    own place, as soon as it is asked, here or in a launcher.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    if os.environ.get(WHERE, default_cache_dir()) == default_cache_dir():
        with suppress(OSError, RuntimeError):  # no home, or one that may not be written
            folder = _users_cache()
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "can-be-locked").open("a+") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared, since all ranks ask
            if _is_one_word(str(folder)):
                os.environ[WHERE] = str(folder)


def keep_traced_graphs() -> None:
    """Let a second start skip the tracing of a graph and of its gradients too, where it has a torch.autograd.Function.

    The loss of the head is one, and torch passes such graphs over unless it is told. Its key has what was traced of
    both directions, so another gradient is another graph.
    """
    from torch._functorch import config

    if hasattr(config, ALLOWED):
        setattr(config, ALLOWED, True)


def seed_what_is_computed_again() -> None:
    """Let blocks that are computed again draw from torch's default generator, which every micro-batch seeds.

    On CUDA torch would give their attention generators of its own, which are seeded once and go on from draw to draw.
    """
    from torch._functorch import config

    if hasattr(config, OWN_GENERATORS):
        setattr(config, OWN_GENERATORS, False)


def found_compiler(device: torch.device) -> str | None:
    """The compiler that train.compile would use: Triton's for C on CUDA, else Inductor's for C++; null without one."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    if device.type == "cuda":
        return os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    try:
        return get_cpp_compiler()
    except (InvalidCxxCompiler, OSError):  # the second for one that may not be run
        return None


def finds_python_headers(compiler: str) -> bool:
    """Whether a compiler finds Python.h, which all that torch and Triton let it compile includes."""
    if sys.platform != "linux":  # a Mac's framework has them in a place of its own
        return True
    folder = sysconfig.get_path("include")
    command = [compiler, f"-I{folder}", "-E", "-x", "c", "-include", "Python.h", os.devnull]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:  # what CC names is no compiler
        return False


def check_compiler(device: torch.device) -> None:
    """Raise TrainingError on a CPU without a compiler, which torch needs for what it has kept too, Python.h, or paths
    that torch can give to it."""
    if device.type != "cpu":
        return
    _check_folders()
    found = found_compiler(device)
    if found is None:
        raise TrainingError(
            "train.compile=true needs a C++ compiler on a CPU, and there is none that runs: install g++ (clang++ on a "
            "Mac), name one in CXX, or set train.compile=false"
        )
    if not finds_python_headers(found):
        raise TrainingError(
            f"train.compile=true needs the C headers of Python, and {found} finds no Python.h in "
            f"{sysconfig.get_path('include')}: install python3-dev (python3-devel on Fedora and its kin), or set "
            "train.compile=false"
        )


def _check_folders() -> None:
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    for folder, mend in (
        (str(Path(torch.__file__).parent), "install torch in another place, or set train.compile=false"),
        (cache_dir(), f"set {WHERE} to one without"),
    ):
        if not _is_one_word(folder):
            raise TrainingError(
                "train.compile=true: on a CPU torch can compile nothing where a path has a space, a quote or a "
                f"backslash, as {folder} has; {mend}"
            )


def _is_one_word(path: str) -> bool:
    """Whether a path stays as it is where torch writes it into a command line, unquoted, and takes that apart."""
    try:
        return shlex.split(path) == [path]
    except ValueError:  # a quote that does not end
        return False


def _users_cache() -> Path:
    """A folder of each kind of processor, for which code is compiled, and of each torch."""
    cpu = platform.machine() + platform.processor()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu += next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "gptscale" / "compiled" / f"torch-{torch.__version__}-{sha256(cpu.encode()).hexdigest()[:8]}"


def remove_halves() -> list[Path]:
    """Remove compiled files that were never finished, and give their paths; torch compiles what is missing.

    Torch takes any file that is there for a finished one, so without this no later start would get past a half one.
    A file is half if its table of sections, which linkers write last, lies beyond its end, or if the folder that
    torch makes beside it while it compiles is still there. What somebody is at work on is locked, and stays. One rank
    of a machine looks.
    """
    if sys.platform != "linux" or launched_local_rank() != 0:
        return []
    from torch._inductor.runtime.cache_dir_utils import cache_dir, default_cache_dir

    folders = {Path(cache_dir()), Path(default_cache_dir())}  # the second has all compiled headers
    # os.walk passes over folders that are gone: compilers elsewhere share the place, and remove theirs as they end.
    found = {Path(parent, name) for folder in folders for parent, _, names in os.walk(folder) for name in names}
    compiled = [path for path in found if path.suffix in (".so", ".o", ".gch")]
    return sorted(path for path in compiled if _is_half(path) and _removed(path))


def _is_half(path: Path) -> bool:
    with suppress(OSError):  # gone since, or not ours
        return path.with_name(f"{path.stem}_CxxBuild").is_dir() or (path.suffix != ".gch" and not _is_whole(path))
    return False


def _is_whole(path: Path) -> bool:
    """Whether a 64-bit ELF file reaches to the end of its table of sections."""
    with path.open("rb") as file:
        header = file.read(WHOLE_ELF_BYTES)
    if len(header) < WHOLE_ELF_BYTES or not header.startswith(b"\x7fELF"):
        return False
    numbers = (header[40:48], header[58:60], header[60:62])
    table, entry_bytes, entries = (int.from_bytes(number, sys.byteorder) for number in numbers)
    return table > 0 and table + entry_bytes * entries <= path.stat().st_size


def _removed(path: Path) -> bool:
    """Remove a file, if nobody holds the lock under which torch compiles it."""
    locks = path.with_name("locks") if path.suffix == ".gch" else path.parents[1] / "locks"
    try:
        locks.mkdir(exist_ok=True)
        with (locks / f"{path.name.partition('.')[0]}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except OSError:  # held, not ours, or just removed by another rank
        return False
    return True
