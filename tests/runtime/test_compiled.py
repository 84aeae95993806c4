"""What a killed compiler left is found and removed; what is whole, or being written, stays."""

import errno
import fcntl
import os
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config as inductor
from torch import Tensor
from torch._dynamo.utils import counters
from torch._functorch import config
from torch._inductor.runtime.cache_dir_utils import cache_dir, default_cache_dir

from gptscale.errors import TrainingError
from gptscale.runtime.compiled import (
    check_compiler,
    finds_python_headers,
    keep_in_users_cache,
    keep_traced_graphs,
    remove_halves,
    seed_what_is_computed_again,
)


def elf(sections: int = 2) -> bytes:
    """A 64-bit ELF file of a header and a table of sections right behind it."""
    place = struct.pack("QQ", 0, 64)  # of the programs' table and the sections'
    sizes = struct.pack("IHHHHHH", 0, 64, 0, 0, 64, sections, 0)
    return b"\x7fELF".ljust(32, b"\0") + place + sizes + bytes(64 * sections)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with a whole library in it, and no other on this machine."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    assert len(elf()) == 64 + 2 * 64
    (tmp_path / "cache" / "ab").mkdir(parents=True)
    (tmp_path / "cache" / "ab" / "cabc.main.so").write_bytes(elf())
    return tmp_path / "cache"


@pytest.mark.parametrize(
    "content",
    [b"", b"\x7fELF", bytes(192), elf()[:-1], elf()[:64], b"\x7fELF" + bytes(188)],
    ids=["empty", "four bytes", "zeros", "one byte short", "the header alone", "no table yet"],
)
@pytest.mark.parametrize("kind", ["so", "o"])
def test_a_library_that_was_not_finished_goes(cache: Path, content: bytes, kind: str) -> None:
    half = cache / "ab" / f"chalf.main.{kind}"
    half.write_bytes(content)
    assert remove_halves() == [half]
    assert [path.name for path in (cache / "ab").iterdir()] == ["cabc.main.so"]
    assert remove_halves() == []


@pytest.mark.parametrize("there", [True, False], ids=["one that may not be run", "none"])
def test_a_start_on_a_cpu_without_a_compiler_is_told_before_it_compiles(cache: Path, there: bool) -> None:
    if there:
        (cache / "g++").write_text("")
    said = r"train.compile=true needs a C\+\+ compiler on a CPU, and there is none that runs"
    with inductor.patch({"cpp.cxx": (None, str(cache / "g++"))}), pytest.raises(TrainingError, match=said):
        check_compiler(torch.device("cpu"))
    check_compiler(torch.device("cuda"))  # which has another


@pytest.mark.skipif(sys.platform != "linux", reason="looked for on Linux alone")
def test_a_start_on_a_cpu_without_pythons_headers_is_told_before_it_compiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_compiler(torch.device("cpu"))
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(TrainingError, match=rf"finds no Python.h in {tmp_path}: install python3-dev"):
        check_compiler(torch.device("cpu"))


@pytest.mark.parametrize("name", ["a b", "o'brien", "a\\b"])
def test_a_start_on_a_cpu_whose_paths_no_compiler_is_given_whole_is_told(
    cache: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with monkeypatch.context() as here:
        here.setenv("TORCHINDUCTOR_CACHE_DIR", str(cache / name))
        with pytest.raises(TrainingError, match="a quote or a backslash, as .*; set TORCHINDUCTOR_CACHE_DIR to one wi"):
            check_compiler(torch.device("cpu"))
    check_compiler(torch.device("cuda"))
    monkeypatch.setattr(torch, "__file__", str(cache / name / "torch" / "__init__.py"))
    with pytest.raises(TrainingError, match="has; install torch in another place, or set train.compile=false"):
        check_compiler(torch.device("cpu"))


@pytest.mark.skipif(sys.platform != "linux", reason="looked for on Linux alone")
def test_what_is_no_compiler_finds_no_headers(tmp_path: Path) -> None:
    assert not finds_python_headers(str(tmp_path / "cc"))


def test_what_is_gone_before_it_is_looked_at_is_nobodys_fault(cache: Path) -> None:
    (cache / "ab" / "cgone.main.so").symlink_to(cache / "gone")
    assert remove_halves() == []


def test_a_folder_that_goes_during_the_search_is_passed_over(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / "ab" / "chalf.main.so").write_bytes(b"")
    building, listed = cache / "ab" / "cabc_CxxBuild", os.scandir
    building.mkdir()

    def listing(path: Any) -> Any:
        if Path(path) == building:
            building.rmdir()  # as torch does when it has compiled
        return listed(path)

    monkeypatch.setattr(os, "scandir", listing)
    assert remove_halves() == [cache / "ab" / "chalf.main.so"]
    assert not building.exists()


def test_a_header_whose_compiler_was_killed_goes(cache: Path) -> None:
    headers = cache / "precompiled_headers"
    (headers / "ckilled.h_CxxBuild").mkdir(parents=True)  # torch removes it once the compiler is done
    for name in ("ckilled.h.gch", "cwhole.h.gch"):
        (headers / name).write_bytes(b"gpch")
    (headers / "locks").mkdir()
    with (headers / "locks" / "ckilled.lock").open("w") as lock:  # somebody compiles it again
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert remove_halves() == []
    assert remove_halves() == [headers / "ckilled.h.gch"]
    assert (headers / "cwhole.h.gch").exists()


def test_headers_are_looked_for_where_torch_has_them_wherever_the_rest_is(cache: Path) -> None:
    half = Path(default_cache_dir()) / "precompiled_headers" / "ckilled.h.gch"
    assert not half.is_relative_to(cache)
    half.with_name("ckilled.h_CxxBuild").mkdir(parents=True)
    half.write_bytes(b"gpch")
    assert remove_halves() == [half]


def test_what_somebody_is_writing_stays(cache: Path) -> None:
    half = cache / "ab" / "chalf.main.so"
    half.write_bytes(b"\x7fELF")
    (cache / "locks").mkdir()
    with (cache / "locks" / "chalf.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert remove_halves() == []
    assert half.exists()
    assert remove_halves() == [half]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
def test_a_traced_gradient_is_kept_and_another_one_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))

    def gradient(slope: float) -> tuple[list[float], int]:
        class Sloped(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor) -> Tensor:
                ctx.save_for_backward(x)
                return x.exp().sum()

            @staticmethod
            def backward(ctx: Any, gradient: Tensor) -> Tensor:
                return gradient * slope * ctx.saved_tensors[0]

        torch._dynamo.reset()
        counters.clear()
        x = torch.tensor([1.0, 2.0], requires_grad=True)
        torch.compile(Sloped.apply, dynamic=False)(x).backward()
        assert x.grad is not None
        return x.grad.tolist(), counters["aot_autograd"]["autograd_cache_hit"]

    with config.patch(autograd_cache_allow_custom_autograd_functions=False):
        keep_traced_graphs()
        assert gradient(2.0) == ([2.0, 4.0], 0)
        assert gradient(2.0) == ([2.0, 4.0], 1)
        assert gradient(3.0) == ([3.0, 6.0], 0)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory in which nobody has said where torch keeps things."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # so that it is put back afterwards
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_what_is_compiled_is_kept_in_the_users_cache_for_this_torch(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_in_users_cache()
    found = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert found.parent == home / ".cache" / "gptscale" / "compiled"
    assert found.name.startswith(f"torch-{torch.__version__}-")
    with (found / "can-be-locked").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # as another rank does at the same time
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
        keep_in_users_cache()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(found)


def test_another_processor_has_a_folder_of_its_own(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home directory is often that of several kinds of machines, and code for one may not run on the other."""
    read, found = Path.read_text, set()
    for flags in ("flags: sse4_2", "flags: sse4_2 avx512f", "Features: asimd", "Features: asimd sve"):
        cpu = {Path("/proc/cpuinfo"): f"processor: 0\n{flags}\n"}
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
        monkeypatch.setattr(Path, "read_text", lambda path, *a, cpu=cpu, **b: cpu.get(path) or read(path, *a, **b))
        keep_in_users_cache()
        found.add(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert len(found) == 4


def test_torchs_own_word_is_nobodys(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", cache_dir())  # which torch has put there itself
    keep_in_users_cache()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"].startswith(str(home / ".cache" / "gptscale"))


def test_another_place_for_what_is_compiled_is_respected(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/somewhere")
    keep_in_users_cache()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/somewhere"
    assert not (home / ".cache").exists()


@pytest.mark.parametrize("obstacle", ["no locks", "no folder", "a b", "o'brien", 'a"b"', "a\\b"])
def test_where_the_users_cache_cannot_serve_torchs_own_place_does(
    home: Path, monkeypatch: pytest.MonkeyPatch, obstacle: str
) -> None:
    def refused(*args: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    if obstacle == "no locks":
        monkeypatch.setattr(fcntl, "flock", refused)
    elif obstacle == "no folder":
        (home / ".cache").write_text("a file")
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", str(home / obstacle))
    keep_in_users_cache()
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ


def test_only_one_rank_of_a_machine_looks_for_halves(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = cache / "ab" / "chalf.main.so"
    half.write_bytes(b"")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert remove_halves() == []
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert remove_halves() == [half]


def test_what_is_computed_again_draws_from_the_generator_that_is_seeded() -> None:
    with config.patch(graphsafe_rng_functionalization=True):  # as torch has it, whose own generators no seed reaches
        seed_what_is_computed_again()
        assert not config.graphsafe_rng_functionalization
