"""Ranks that meet."""

import os
import resource
import sys

import pytest
import torch

from gptscale.errors import ConfigError, RankError, TrainingError
from gptscale.runtime import ranks


def test_what_the_backend_prints_is_no_output_of_ours(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # a single process forms a group of its own for it
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(ranks, "store", None)
    monkeypatch.setattr(ranks, "has_cuda", lambda: False)
    monkeypatch.setattr(ranks.dist, "init_process_group", lambda *_, **__: os.write(1, b"[Gloo] Rank 0 is connected\n"))
    print("before")
    ranks.join()
    print("after")
    assert capfd.readouterr() == ("before\nafter\n", "[Gloo] Rank 0 is connected\n")


def test_ranks_meet_where_standard_output_was_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with ranks._stdout_on_stderr():
        pass


def test_ranks_that_do_not_know_where_to_meet_are_told_as_they_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setattr(ranks, "_meeting", None)
    with pytest.raises(ConfigError, match="MASTER_ADDR and MASTER_PORT do not say where they meet"):
        ranks.join()


def test_a_rank_on_a_gpu_takes_its_own_and_speaks_over_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[object] = []
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(ranks, "store", None)
    monkeypatch.setattr(ranks, "_words", None)
    monkeypatch.setattr(ranks, "has_cuda", lambda: True)
    monkeypatch.setattr(ranks, "let_gloo_follow_nccl", lambda: done.append("an interface for Gloo"))
    monkeypatch.setattr(ranks.torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(ranks.torch.cuda, "set_device", done.append)
    monkeypatch.setattr(ranks.dist, "init_process_group", lambda backend, **_: done.append(backend))
    monkeypatch.setattr(ranks.dist, "new_group", lambda backend, timeout: backend)
    ranks.join()
    assert done == [3, "an interface for Gloo", "nccl"]
    assert ranks._words == "gloo"


def test_a_single_process_raises_its_own_error() -> None:
    with pytest.raises(ZeroDivisionError):
        ranks.agree(lambda: 1 / 0)


def test_a_rank_waits_for_the_others_before_it_parts_from_them(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(ranks.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(ranks.dist, "barrier", lambda group: done.append("all are here"))
    monkeypatch.setattr(ranks.dist, "destroy_process_group", lambda: done.append("parted"))
    ranks.leave()
    assert done == ["all are here", "parted"]


def test_ranks_for_which_there_is_no_gpu_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("LOCAL_RANK", "5")
    monkeypatch.setattr(ranks.dist, "is_initialized", lambda: False)
    monkeypatch.setattr(ranks, "has_cuda", lambda: True)
    monkeypatch.setattr(ranks.torch.cuda, "device_count", lambda: 4)
    with pytest.raises(RankError, match="rank 5 is number 6 on its machine, where 4 GPUs can be used; start one rank"):
        ranks.join()


def test_nccl_waits_longer_than_gloo_which_can_say_what_it_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTSCALE_COLLECTIVE_TIMEOUT_S", "5")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert ranks.patience().total_seconds() == 65
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert ranks.patience().total_seconds() == 5


def test_ranks_that_agree_tell_each_other_words_only_where_one_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1024")
    voted: list[bool] = []
    said: list[object] = []

    def reduced(votes: torch.Tensor, op: object, group: object) -> None:
        voted.append(bool(votes[0]))

    monkeypatch.setattr(ranks.dist, "all_reduce", reduced)
    monkeypatch.setattr(ranks, "gather", lambda value: said.append(value) or [value])
    assert ranks.agree(lambda: 7) == 7
    assert (voted, said) == ([False], [])
    with pytest.raises(TrainingError, match="rank 0 failed with ValueError: no"):
        ranks.agree(lambda: (_ for _ in ()).throw(ValueError("no")))
    assert said == [("ValueError", "no")]


def test_a_process_that_may_not_be_connected_to_all_others_says_so_and_does_not_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1024")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(ranks.dist, "is_initialized", lambda: False)
    monkeypatch.setattr(ranks, "has_cuda", lambda: False)
    limits = [(1024, 4096)]
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda which, limit: limits.append(limit))
    monkeypatch.setattr(ranks, "check_meeting_point", lambda: (_ for _ in ()).throw(RankError("came so far")))
    with pytest.raises(RankError, match="came so far"):
        ranks.join()
    assert limits[-1][0] >= 2 * 1024  # a connection of the group and one of the store to each of 1,024
    limits.append((1024, 2048))
    with pytest.raises(RankError, match=r"rank 3 needs 2,048 connections .* than 2,048 files open; raise the limit on"):
        ranks.join()
