import os
from pathlib import Path

import pytest
from torch._inductor.runtime.cache_dir_utils import cache_dir

from gptscale.runtime.compile_cache import keep_compiled


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    os.environ.pop("TORCHINDUCTOR_CACHE_DIR", None)
    os.environ.pop("XDG_CACHE_HOME", None)
    return monkeypatch


def test_what_is_compiled_is_kept_in_the_users_cache(unset: pytest.MonkeyPatch, tmp_path: Path) -> None:
    unset.setitem(os.environ, "XDG_CACHE_HOME", str(tmp_path))
    keep_compiled()
    assert cache_dir() == str(tmp_path / "gptscale" / "compiled")


def test_a_place_that_was_named_stays(unset: pytest.MonkeyPatch) -> None:
    unset.setitem(os.environ, "TORCHINDUCTOR_CACHE_DIR", "/elsewhere")
    keep_compiled()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/elsewhere"


def test_a_path_that_the_compiler_would_cut_in_two_is_not_used(unset: pytest.MonkeyPatch, tmp_path: Path) -> None:
    unset.setitem(os.environ, "XDG_CACHE_HOME", str(tmp_path / "my cache"))
    keep_compiled()
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
