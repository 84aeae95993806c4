"""gptscale plan: the table, the JSON object, and what a mistake is told."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from gptscale.cli import plan
from gptscale.config.load import dump_config, parse_config
from gptscale.errors import ConfigError
from tests.conftest import small_values

ROOT = Path(__file__).parents[2]
GPT2 = ROOT / "configs" / "gpt2-124m.yaml"
XL = ROOT / "configs" / "gpt2-1558m.yaml"

Say = Callable[..., str]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """What the verb prints."""

    def run(*args: Any, **options: Any) -> str:
        plan.run_plan(*args, **options)
        return capsys.readouterr().out

    return run


@pytest.fixture
def made_run(tmp_path: Path) -> Callable[..., Path]:
    """A run folder of GPT-2 small as training leaves it, with a speed on record."""

    def make(device: str = "NVIDIA H100 80GB HBM3", speed: float = 400_000.0, mfu: float = 0.346) -> Path:
        folder = tmp_path / "run"
        folder.mkdir()
        values = {**small_values(tmp_path), "model": {"preset": "124M"}}
        values["train"] |= {"tokens_per_step": 524_288, "micro_batch_sequences": 16, "precision": "bf16"}
        (folder / "config.yaml").write_text(dump_config(parse_config(values)))
        start = {"device": device, "engine": "none", "world": 1, "data_fingerprint": "f"}
        (folder / "provenance.json").write_text(json.dumps({"starts": [start]}))
        record = {"step": 10, "train/tokens_per_s": speed, "train/mfu": mfu}
        save = {"step": 10, "checkpoint/bytes": 1.5e9, "checkpoint/durable_s": 3.0}
        (folder / "log.jsonl").write_text(json.dumps(record) + "\n" + json.dumps(save) + "\n")
        return folder

    return make


def planned(text: str) -> Any:
    return json.loads(text)


def test_the_table_has_everything_and_ends_with_the_verdict(say: Say) -> None:
    text = say(GPT2, ["train.epochs=null", "train.tokens=10_000_000_000"], gpus=8, engine="zero2", tokens=1e9)
    rows = {line[:12].strip() for line in text.splitlines()}
    assert rows >= {"model", "step", "GPU counts", "rates", "step time", "this run", "Chinchilla", "--tokens"}
    assert "124,439,808 parameters, 854 MFLOP for each token" in text
    assert "524,288 tokens, 512 sequences: zero2 x8, 4 micro-batches of 16" in text
    assert "1, 2, 4, 8, 16, 32 divide the step without filling" in text
    assert "40% of the peak (assumed; see --mfu and --from); 450 GB/s from GPU to GPU" in text
    assert re.search(r"^> zero2 .*\d+\.\d\d", text, re.MULTILINE)
    for engine in ("ddp", "zero1", "zero3", "zero3-offload", "fsdp2"):
        assert re.search(rf"^  {engine} .*\d+\.\d\d", text, re.MULTILINE)
    assert "this run     9,999,745,024 tokens, 19,073 steps" in text  # 10^10 / 524,288, rounded down
    assert "Chinchilla   2,488,796,160 tokens" in text  # 20 * 124,439,808
    # 12 * (124,439,808 + 47 rows of padding * 768) bytes; 3 kept, the best, and one on its way
    assert "checkpoints  1.49 GB each, safe after 1.49 s; 4 stay, so up to 7.47 GB of disk" in text
    assert text.splitlines()[-1].startswith("verdict      fits: ")


def test_the_columns_of_the_table_are_what_they_are_called(say: Say) -> None:
    text = say(GPT2, gpus=8, engine="zero1")
    row = next(line for line in text.splitlines() if line.startswith("> zero1")).split()
    assert row[2:5] == ["0.52", "0.46", "0.12"]  # GiB of 124,475,904 elements at 4 + 4/8, 4 and 8/8 bytes


def test_machines_with_a_copy_each_are_planned_beside_the_rest(say: Say) -> None:
    text = say(GPT2, gpus=16, engine="fsdp2")
    assert "400 GB/s from GPU to GPU, 450 within a machine, 50 for each to its like in another" in text
    assert re.search(r"^  hsdp .*\d+\.\d\d", text, re.MULTILINE)
    text = say(GPT2, gpus=4, engine="hsdp", machine_gpus=2)
    assert "sequences: hsdp x4 with 2 copies of the state, 8 micro-batches of 16" in text


def test_a_measured_run_with_copies_was_cut_as_it_says(made_run: Callable[..., Path], say: Say) -> None:
    folder = made_run(speed=12 * 150_000.0)
    start = {"device": "NVIDIA H100 80GB HBM3", "engine": "hsdp", "world": 12, "dp_shard_size": 4}
    (folder / "provenance.json").write_text(json.dumps({"starts": [start]}))
    found = planned(say(GPT2, from_run=folder, gpus=8, engine="fsdp2", as_json=True))  # 12 are no machines of 8
    assert found["rates"]["flops"] > 150_000 * 854e6


def test_a_bandwidth_between_machines_says_nothing_of_a_run_on_one(made_run: Callable[..., Path], say: Say) -> None:
    folder = made_run(speed=8 * 400_000.0)
    start = {"device": "NVIDIA H100 80GB HBM3", "engine": "zero2", "world": 8}
    (folder / "provenance.json").write_text(json.dumps({"starts": [start]}))
    plain = planned(say(GPT2, from_run=folder, gpus=16, engine="zero2", as_json=True))
    slow = planned(say(GPT2, from_run=folder, gpus=16, engine="zero2", bandwidth=12, as_json=True))
    assert slow["mfu"] == plain["mfu"]
    assert slow["engines"][0]["step_s"] > plain["engines"][0]["step_s"]


def test_a_plan_that_is_fsdp2_by_another_name_gets_its_advice(capsys: pytest.CaptureFixture[str]) -> None:
    verdicts = []
    for engine in ("fsdp2", "hsdp"):
        with pytest.raises(plan.typer.Exit):
            plan.run_plan(XL, ["train.micro_batch_sequences=16"], gpus=8, engine=engine, gpu="rtx4090")
        verdicts.append(capsys.readouterr().out.splitlines()[-1])
    assert verdicts[0].endswith("nearest that does: train.micro_batch_sequences=2")
    assert verdicts[1] == verdicts[0]


def test_what_does_not_fit_says_why_and_what_would(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(plan.typer.Exit) as end:
        plan.run_plan(XL, gpus=8, engine="ddp", gpu="rtx4090", tokens=1e9)
    text = capsys.readouterr().out
    assert end.value.exit_code == 1
    assert "> ddp (too much)" in text
    verdict = text.splitlines()[-1]
    assert re.fullmatch(
        r"verdict      does not fit: \d+\.\d GiB where 21\.6 of the 24 of rtx4090 can be used, because moments take 11\.6; "
        r"nearest that does: .+",
        verdict,
    )


def test_a_corpus_that_is_being_prepared_is_not_there_yet(say: Say, tmp_path: Path) -> None:
    (tmp_path / "unit-00000.json").write_text("{}")
    text = say(GPT2, [f"data.dir={tmp_path}"])
    assert "this run     train.epochs=1 of a corpus that is not there yet; --tokens plans for a number" in text


def test_what_is_named_as_nearest_fits(capsys: pytest.CaptureFixture[str], say: Say) -> None:
    with pytest.raises(plan.typer.Exit):
        plan.run_plan(XL, gpus=2, engine="ddp", gpu="rtx4090")
    nearest = capsys.readouterr().out.splitlines()[-1].split("nearest that does: ")[1].split()
    settings = [word for word in nearest if "=" in word]
    options = dict(zip(nearest[::2], nearest[1::2], strict=False)) if nearest[0].startswith("--") else {}
    known = {"--gpus": "gpus", "--engine": "engine", "--gpu": "gpu"}
    changed = {known[key]: int(value) if key == "--gpus" else value for key, value in options.items() if key in known}
    text = say(XL, settings, **{"gpus": 2, "engine": "ddp", "gpu": "rtx4090", **changed})
    assert text.splitlines()[-1].startswith("verdict      fits: ")


def test_json_has_the_same_numbers(say: Say) -> None:
    found = planned(say(GPT2, gpus=8, engine="zero2", as_json=True))
    assert found["parameters"] == 124_439_808
    assert found["launch"] == {
        "engine": "zero2",
        "gpus": 8,
        "micro_batch_sequences": 16,
        "machine_gpus": 8,
        "dp_shard_size": None,
    }
    assert found["fits"] is True
    assert [engine["engine"] for engine in found["engines"]] == [
        "zero2",
        "ddp",
        "zero1",
        "zero3",
        "zero3-offload",
        "fsdp2",
    ]
    memory = found["engines"][0]["memory"]
    assert found["engines"][0]["total_bytes"] == sum(memory.values()) - memory["host"]
    assert set(memory) == {"weights", "gradients", "moments", "activations", "logits", "buffers", "host"}


def test_hours_of_a_budget_are_those_of_a_clock_and_gpu_hours_those_of_all_gpus(say: Say) -> None:
    found = planned(say(GPT2, gpus=8, engine="ddp", tokens=524_288_000, as_json=True))
    budgets = {budget["name"]: budget for budget in found["budgets"]}
    assert budgets["--tokens"]["hours"] == pytest.approx(1000 * found["engines"][0]["step_s"] / 3600)
    assert all(budget["gpu_hours"] == pytest.approx(8 * budget["hours"]) for budget in budgets.values())


def test_auto_takes_the_largest_micro_batch_that_fits(say: Say) -> None:
    found = planned(say(XL, ["train.micro_batch_sequences=auto"], gpus=8, engine="zero2", as_json=True))
    assert found["launch"]["micro_batch_sequences"] == found["engines"][0]["largest_micro_batch_sequences"] > 1


def test_where_no_smaller_micro_batch_divides_the_step_other_gpus_are_named(say: Say) -> None:
    verdict = say(GPT2, ["train.micro_batch_sequences=12"], gpus=6, engine="ddp").splitlines()[-1]
    assert verdict.endswith(
        "nearest that do: --gpus 4 train.micro_batch_sequences=1 or --gpus 8 train.micro_batch_sequences=1"
    )


def test_gpus_that_do_not_divide_a_step_are_told_what_filling_costs(say: Say) -> None:
    verdict = say(GPT2, gpus=12, engine="ddp").splitlines()[-1]
    # 32 micro-batches of 16 on 12 GPUs are 3 each, 36 in all
    assert (
        "12 GPUs do not divide the step's 512 sequences in micro-batches of 16: 11% of the work is filling" in verdict
    )
    assert verdict.endswith("nearest that do: --gpus 8 or --gpus 16")
    verdict = say(GPT2, gpus=64, engine="ddp").splitlines()[-1]
    assert verdict.endswith("nearest that do: --gpus 32 or train.micro_batch_sequences=8")
    verdict = say(GPT2, ["train.micro_batch_sequences=12"], gpus=8, engine="ddp").splitlines()[-1]
    assert verdict.endswith("nearest that do: train.micro_batch_sequences=8")
    # 74 micro-batches of 7 hold 518 sequences
    verdict = say(GPT2, ["train.micro_batch_sequences=7"]).splitlines()[-1]
    assert "but 1 GPU does not divide the step's 512 sequences in micro-batches of 7: 1% of the work" in verdict


def test_a_gpu_without_bf16_is_refused_for_it(say: Say) -> None:
    with pytest.raises(ConfigError, match="train.precision=bf16 is none that v100 computes in; use fp16"):
        plan.run_plan(GPT2, gpu="v100")
    assert "verdict      fits" in say(GPT2, ["train.precision=fp16"], gpu="v100")


def test_epochs_are_counted_where_the_corpus_is(values: dict[str, Any], tmp_path: Path, say: Say) -> None:
    values["train"] = {**values["train"], "steps": None, "epochs": 2}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    assert re.search(r"^this run     [\d,]+ tokens, [\d,]+ steps", say(path), re.MULTILINE)
    elsewhere = say(path, [f"data.dir={tmp_path / 'nowhere'}"])
    assert "this run     train.epochs=2 of a corpus that is not there yet; --tokens plans for a number" in elsewhere


def test_a_measured_run_gives_its_gpu_its_speed_and_its_disk(made_run: Callable[..., Path], say: Say) -> None:
    found = planned(say(GPT2, from_run=made_run(), as_json=True))
    assert found["gpu"] == "h100"
    assert found["engines"][0]["step"]["compute_s"] + found["engines"][0]["step"]["update_s"] == pytest.approx(
        524_288 / 400_000
    )
    assert found["checkpoints"]["save_s"] == pytest.approx(found["checkpoints"]["bytes_each"] / 0.5e9)


def test_what_is_given_wins_over_what_was_measured(made_run: Callable[..., Path], say: Say) -> None:
    found = planned(say(GPT2, from_run=made_run(), gpu="h200", mfu=0.5, disk=2, bandwidth=10, as_json=True))
    assert found["gpu"] == "h200"
    assert found["rates"]["flops"] == 0.5 * 989e12
    assert found["rates"]["link_bytes"] == 10e9
    assert found["checkpoints"]["save_s"] == pytest.approx(found["checkpoints"]["bytes_each"] / 2e9)


def test_a_run_on_a_processor_plans_for_one(made_run: Callable[..., Path], say: Say) -> None:
    text = say(GPT2, from_run=made_run("CPU, 2 threads", 100.0, 0.5))
    # Of 10 ms for a token 5 * 347,536 bytes of activations take 0.348 and an update (40 * 124 M bytes a step) 0.002, at
    # 5 GB/s, so its 854 MFLOP take 9.651 ms; over all of the 10 ms they would be at 50% of the peak.
    assert "rates        cpu at 0.0885 TFLOP/s, 52% of the peak (measured in" in text


@pytest.mark.parametrize(
    ("device", "options", "message"),
    [
        (
            "CPU, 2 threads",
            {"gpu": "h100"},
            "--from was measured on CPU, 2 threads, which says nothing about --gpu=h100",
        ),
        ("AMD Instinct MI300X", {}, "--from was measured on AMD Instinct MI300X, which is not known; say with --gpu"),
    ],
)
def test_a_run_on_another_device_is_no_measure(
    made_run: Callable[..., Path], device: str, options: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        plan.run_plan(GPT2, from_run=made_run(device), **options)  # type: ignore[arg-type]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"--from=.* is no run; give a run folder that `gptscale train` has written to"
    ):
        plan.run_plan(GPT2, from_run=tmp_path)


def test_a_plan_waits_for_no_heavy_library() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "gptscale", "plan", str(GPT2), "--gpus", "8"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    imported = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert not imported & {"torch", "numpy", "datasets", "accelerate", "deepspeed", "wandb", "matplotlib"}
