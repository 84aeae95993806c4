"""Ranks by hand are what a launcher would have started."""

import time
from pathlib import Path

import pytest
import yaml

from gptscale.errors import ConfigError, TrainingError
from gptscale.runtime import processes
from gptscale.runtime.processes import ENGINE_VARIABLES, Place, Processes

LAUNCH = Path(__file__).parents[2] / "launch" / "accelerate"


@pytest.mark.parametrize("engine", [engine for engine in ENGINE_VARIABLES if engine != "none"])
def test_an_engine_is_what_its_launch_file_says(engine: str) -> None:
    said = yaml.safe_load((LAUNCH / f"{engine}.yaml").read_text())
    expected = {"MULTI_GPU": {}}
    if said["distributed_type"] == "DEEPSPEED":
        stage = str(said["deepspeed_config"]["zero_stage"])
        expected["DEEPSPEED"] = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": stage}
    if said["distributed_type"] == "FSDP":
        expected["FSDP"] = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": str(said["fsdp_config"]["fsdp_version"])}
    if "parallelism_config" in said:  # that file shards over a machine; ranks by hand are two copies
        assert set(said["parallelism_config"]) == {"parallelism_config_dp_shard_size"}
        two_copies = {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2"}
        expected["FSDP"] |= two_copies
    assert ENGINE_VARIABLES[engine] == expected[said["distributed_type"]]


def test_a_place_that_cannot_be_is_refused() -> None:
    assert str(Place("zero3", 4)) == "zero3 x4"
    with pytest.raises(
        ConfigError, match="engine zero4 is unknown; choose one of none, ddp, zero1, zero2, zero3, fsdp2"
    ):
        Place("zero4", 2)
    with pytest.raises(ConfigError, match="engine none is one process, not 2; choose ddp for several ranks"):
        Place("none", 2)
    with pytest.raises(ConfigError, match="engine hsdp is two copies of the state here, not 3 ranks; choose an even"):
        Place("hsdp", 3)


def show(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(processes, "_RUN_GPTSCALE", code)


def test_every_rank_is_told_who_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_PARALLELISM_CONFIG", "PARALLELISM_CONFIG_DP_SHARD_SIZE"):
        monkeypatch.setenv(name, "true")  # of a launcher around this one
    show(
        monkeypatch,
        "import os, sys\nprint(*(os.environ.get(k) for k in"
        " ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'ACCELERATE_DEEPSPEED_ZERO_STAGE', 'ACCELERATE_USE_FSDP',"
        " 'ACCELERATE_USE_PARALLELISM_CONFIG', 'PARALLELISM_CONFIG_DP_SHARD_SIZE')), sys.argv[1:])",
    )
    with Processes(Place("zero2", 2), ["train", "x.yaml"], tmp_path / "out") as started:
        started.wait()
    assert (tmp_path / "out.0").read_text() == "0 0 2 2 None None None ['train', 'x.yaml']\n"
    assert (tmp_path / "out.1").read_text() == "1 1 2 2 None None None ['train', 'x.yaml']\n"


def test_ranks_share_the_threads_and_compute_the_same_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 9)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    told = processes._environment(Place("ddp", 4), rank=1, port=29500)
    assert told["OMP_NUM_THREADS"] == "2"
    assert told["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"  # else cuBLAS raises under deterministic algorithms
    assert processes._environment(Place("ddp", 16), rank=1, port=29500)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert processes._environment(Place("ddp", 4), rank=1, port=29500)["OMP_NUM_THREADS"] == "3"


def test_one_that_fails_ends_all_and_its_words_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    show(
        monkeypatch,
        "import os, sys, time\nif os.environ['RANK'] == '0': time.sleep(60)\nprint('gptscale: note\\ngptscale: no disk')\nsys.exit(2)",
    )
    started = Processes(Place("ddp", 2), [], tmp_path / "out")
    with pytest.raises(TrainingError, match=r"rank 1 ended with 2: no disk \(all of it: .*out.1\)"):
        started.wait()
    assert not any(process.poll() is None for process in started._started)


def test_one_that_dies_without_a_word_leaves_the_place_to_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    show(monkeypatch, "import os\nos.abort()")
    with pytest.raises(TrainingError, match=r"rank 0 ended with -6: see .*out.0"):
        Processes(Place("none", 1), [], tmp_path / "out").wait()


def test_none_outlives_its_with_statement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    show(monkeypatch, "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)")
    began = time.monotonic()
    with Processes(Place("ddp", 2), [], tmp_path / "out") as started:
        assert started.running()
    assert time.monotonic() - began < 30
    assert [process.returncode for process in started._started] == [-9, -9]
