"""What the environment says about the launch."""

import contextlib
import os

import pytest
from accelerate.utils import str_to_bool

from gptscale.errors import ConfigError
from gptscale.runtime.launch import (
    COLLECTIVE_TIMEOUT_S,
    check_launch_agrees,
    check_launch_variables,
    check_meeting_point,
    collective_timeout_s,
    launched_dp_shard_size,
    launched_engine,
    launched_local_rank,
    life,
    says_yes,
    unsaid,
)


@pytest.mark.parametrize(("said", "seconds"), [("", COLLECTIVE_TIMEOUT_S), ("5", 5.0), ("1e3", 1000.0)])
def test_ranks_wait_as_long_as_they_are_told(monkeypatch: pytest.MonkeyPatch, said: str, seconds: float) -> None:
    monkeypatch.setenv("GPTSCALE_COLLECTIVE_TIMEOUT_S", said)
    assert collective_timeout_s() == seconds


@pytest.mark.parametrize("said", ["10 minutes", "-1", "0", "0.9", "1000001", "nan", "inf"])
def test_a_time_to_wait_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv("GPTSCALE_COLLECTIVE_TIMEOUT_S", said)
    with pytest.raises(ConfigError, match=f"GPTSCALE_COLLECTIVE_TIMEOUT_S={said} is no number of seconds from 1 to"):
        collective_timeout_s()


@pytest.mark.parametrize(
    ("name", "said"), [("WORLD_SIZE", "abc"), ("WORLD_SIZE", "0"), ("RANK", "-1"), ("LOCAL_RANK", "")]
)
def test_what_no_launcher_has_set_is_named(monkeypatch: pytest.MonkeyPatch, name: str, said: str) -> None:
    check_launch_variables()
    monkeypatch.setenv(name, said)
    with pytest.raises(
        ConfigError, match=f"{name}={said} in the environment is no number .*; launchers set it, so unset"
    ):
        check_launch_variables()


@pytest.mark.parametrize(
    "name", ["ACCELERATE_USE_CPU", "ACCELERATE_USE_FSDP", "ACCELERATE_DEBUG_MODE", "FORK_LAUNCHED"]
)
@pytest.mark.parametrize("said", ["", "si"])
def test_a_word_that_accelerate_does_not_know_is_named(monkeypatch: pytest.MonkeyPatch, name: str, said: str) -> None:
    with pytest.raises(ValueError, match="invalid truth value"):
        str_to_bool(said)
    monkeypatch.setenv(name, said)
    with pytest.raises(
        ConfigError, match=f"^{name}={said} in the environment is neither true nor false; set it so, or"
    ):
        check_launch_variables()


@pytest.mark.parametrize("said", ["y", "Yes", "t", "TRUE", "on", "1", "n", "No", "f", "FALSE", "off", "0"])
def test_a_word_means_what_it_means_to_accelerate(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", said)
    check_launch_variables()
    assert says_yes("ACCELERATE_USE_FSDP") == str_to_bool(said)
    assert launched_engine() == ("fsdp2" if str_to_bool(said) else "plain")


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK"])
def test_a_rank_that_was_left_in_a_shell_is_told(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(
        ConfigError, match=f"^{name}=1 in the environment is no rank of WORLD_SIZE=1: .*; unset it or start"
    ):
        check_launch_variables()
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_launch_variables()


@pytest.mark.parametrize(("address", "port"), [("", "29500"), ("127.0.0.1", ""), ("127.0.0.1", "x")])
def test_ranks_that_do_not_know_where_to_meet_are_told(
    monkeypatch: pytest.MonkeyPatch, address: str, port: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", address)
    monkeypatch.setenv("MASTER_PORT", port)
    with pytest.raises(
        ConfigError, match="MASTER_ADDR and MASTER_PORT do not say where they meet; start with accelerate"
    ):
        check_meeting_point()


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "8", "gradient_accumulation_steps=8, but accumulation is 4"),
        ("ACCELERATE_GRADIENT_CLIPPING", "1.0", "gradient_clipping=1.0, but optim.clip_norm is 0.5"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", "mixed_precision=bf16, but train.precision is fp32"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "dynamo_backend=inductor, but that is train.compile; leave it out"),
        ("ACCELERATE_USE_MEGATRON_LM", "true", "use_megatron_lm=true, but the engine is none, DDP, ZeRO or FSDP2"),
        ("FSDP_OFFLOAD_PARAMS", "true", "fsdp_offload_params=true, but offloading is ZeRO-3's alone"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "True", "fsdp_activation_checkpointing=true, but that is train.activation_"),
    ],
)
def test_a_launch_that_contradicts_the_run_is_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    check_launch_agrees("fp32", accumulation=4, clip_norm=0.5)
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError) as refused:
        check_launch_agrees("fp32", accumulation=4, clip_norm=0.5)
    assert message in str(refused.value)


@pytest.mark.parametrize("name", ["PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"])
def test_processes_of_mpi_which_accelerate_would_join_are_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv(name, "2")
    check_launch_agrees("fp32", accumulation=4, clip_norm=0.5)  # each is alone, for itself and for Accelerate
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(ConfigError, match=f"{name}=2 in .* would all take the whole step; start ranks on CPUs with"):
        check_launch_agrees("fp32", accumulation=4, clip_norm=0.5)
    monkeypatch.setenv("WORLD_SIZE", "2")  # a launcher's below MPI
    check_launch_agrees("fp32", accumulation=4, clip_norm=0.5)
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setenv(name, "1")
    check_launch_agrees("fp32", accumulation=4, clip_norm=0.5)


@pytest.mark.parametrize(
    ("world", "said", "expected"),
    [
        (8, {}, 8),
        (8, {"DP_SHARD": "4"}, 4),
        (8, {"DP_REPLICATE": "4"}, 2),
        (8, {"DP_SHARD": "4", "DP_REPLICATE": "2"}, 4),
        (8, {"DP_SHARD": "8", "DP_REPLICATE": "1"}, 8),
        (8, {"DP_REPLICATE": "8"}, 1),
        (1, {}, 1),
    ],
)
def test_ranks_share_a_copy_as_the_launch_says(
    monkeypatch: pytest.MonkeyPatch, world: int, said: dict[str, str], expected: int
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(world))
    for name, size in said.items():
        monkeypatch.setenv(f"PARALLELISM_CONFIG_{name}_SIZE", size)
    assert launched_dp_shard_size() == world  # what lies about in a shell says nothing by itself
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    assert launched_dp_shard_size() == expected


@pytest.mark.parametrize(("local", "expected"), [(None, 8), ("4", 4), ("1", 1)])
def test_each_machine_has_a_copy_where_nothing_more_is_said(
    monkeypatch: pytest.MonkeyPatch, local: str | None, expected: int
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    monkeypatch.setenv("PARALLELISM_CONFIG_DP_SHARD_SIZE", "1")  # as the launcher says it
    if local is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    assert launched_dp_shard_size() == expected


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"DP_SHARD": "3"}, "asks for copies of the state on 3 ranks each, which do not make 8 ranks; set dp_shard_"),
        ({"DP_SHARD": "4", "DP_REPLICATE": "4"}, "copies of the state on 4 ranks each, 4 of them, which do not make 8"),
        ({"DP_SHARD": "16"}, "copies of the state on 16 ranks each, which do not make 8 ranks"),
        ({"DP_REPLICATE": "16"}, "copies of the state on 1 ranks each, 16 of them, which do not make 8 ranks"),
        ({"DP_REPLICATE": "3"}, "copies of the state on 2 ranks each, 3 of them, which do not make 8 ranks"),
        ({"DP_SHARD": "2", "DP_REPLICATE": "2"}, "copies of the state on 2 ranks each, 2 of them, which do not make 8"),
        ({"TP": "2"}, "the launch asks for tp_size=2, but ranks divide samples and state only; leave it out"),
        ({"SP": "2"}, "the launch asks for sp_size=2, but"),
        ({"DP_SHARD": "0"}, "PARALLELISM_CONFIG_DP_SHARD_SIZE=0 in the environment is no number from 1 on"),
        ({"CP": "None"}, "PARALLELISM_CONFIG_CP_SIZE=None in the environment is no number from 1 on"),
    ],
)
def test_copies_that_cannot_be_are_refused(monkeypatch: pytest.MonkeyPatch, said: dict[str, str], message: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    for name, size in said.items():
        monkeypatch.setenv(f"PARALLELISM_CONFIG_{name}_SIZE", size)
    with pytest.raises(ConfigError) as refused:
        launched_dp_shard_size()
    assert message in str(refused.value)


def test_copies_are_those_of_fsdp2_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    with pytest.raises(ConfigError, match="has a parallelism_config, which FSDP2 alone follows .*hsdp.yaml.; leave it"):
        check_launch_agrees("fp32", accumulation=4, clip_norm=0.5)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    check_launch_agrees("fp32", accumulation=4, clip_norm=0.5)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1"),  # what the launcher says by itself
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "auto"),
        ("ACCELERATE_GRADIENT_CLIPPING", "auto"),
        ("ACCELERATE_GRADIENT_CLIPPING", "none"),
        ("ACCELERATE_DYNAMO_BACKEND", "NO"),
        ("ACCELERATE_GRADIENT_CLIPPING", "0.50"),
        ("ACCELERATE_MIXED_PRECISION", "bf16"),
        ("FSDP_OFFLOAD_PARAMS", "False"),
    ],
)
def test_a_launch_that_agrees_is_taken(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    check_launch_agrees("bf16-sharded", accumulation=4, clip_norm=0.5)


def test_a_launch_may_say_that_nothing_is_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_CLIPPING", "0.0")
    check_launch_agrees("fp32", accumulation=4, clip_norm=None)


@pytest.mark.parametrize(("said", "yes"), [("1", True), ("True", True), ("yes", True), ("0", False), ("", False)])
def test_yes_has_several_words(monkeypatch: pytest.MonkeyPatch, said: str, yes: bool) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", said)
    assert says_yes("ACCELERATE_USE_CPU") is yes


def test_without_word_of_machines_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("RANK", "3")
    assert launched_local_rank() == 3


@pytest.mark.parametrize(("agent", "machines", "expected"), [("True", "1", "2"), ("True", "2", None), ("", "1", None)])
def test_a_life_is_counted_by_the_agent_of_the_only_machine(
    monkeypatch: pytest.MonkeyPatch, agent: str, machines: str, expected: str | None
) -> None:
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", agent)
    monkeypatch.setenv("GROUP_WORLD_SIZE", machines)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert life() == expected


def test_what_is_unsaid_is_said_again_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    before = dict(os.environ)
    with contextlib.suppress(ValueError), unsaid("ACCELERATE_USE_CPU", "ACCELERATE_USE_FSDP"):
        assert "ACCELERATE_USE_CPU" not in os.environ
        raise ValueError("also after a failure")
    assert dict(os.environ) == before
