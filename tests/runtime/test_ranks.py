"""Ranks that meet."""

import os

import pytest

from gptscale.runtime import ranks


def test_what_the_backend_prints_is_no_output_of_ours(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # a single process forms a group of its own for it
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(ranks, "_store", None)
    monkeypatch.setattr(ranks, "has_cuda", lambda: False)
    monkeypatch.setattr(ranks.dist, "init_process_group", lambda *_, **__: os.write(1, b"[Gloo] Rank 0 is connected\n"))
    print("before")
    ranks.join()
    print("after")
    assert capfd.readouterr() == ("before\nafter\n", "[Gloo] Rank 0 is connected\n")


def test_a_rank_waits_for_the_others_before_it_parts_from_them(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(ranks.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(ranks.dist, "barrier", lambda group: done.append("all are here"))
    monkeypatch.setattr(ranks.dist, "destroy_process_group", lambda: done.append("parted"))
    ranks.leave()
    assert done == ["all are here", "parted"]
