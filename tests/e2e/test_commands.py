"""The commands as a user types them, with their mistakes: one line that names the fix, and exit code 2."""

import fcntl
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from gptscale.cli.main import main

pytestmark = pytest.mark.e2e

VERBS = ["prepare", "train", "evaluate", "generate", "report", "demo"]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process; gives its exit code, output and errors."""

    def run(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gptscale", *map(str, args)])
        try:
            main()
            code = 0
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def config(tmp_path: Path, values: dict[str, Any]) -> Path:
    """A config file whose corpus is prepared."""
    return write(tmp_path, values)


def write(folder: Path, values: dict[str, Any]) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_the_whole_way(command: Any, config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert command("prepare", config)[0] == 0
    code, out, _ = command("train", config, "train.steps=12", "optim.lr_peak=0.02")
    assert code == 0
    assert "step 12/12" in out
    code, out, _ = command("evaluate", run)
    assert code == 0
    assert out.startswith("val: loss ")
    assert "bits/byte" in out
    # The corpus is 16 words in a cycle; after 12 steps the model is far below log(257) = 5.55.
    assert float(out.split()[2]) < 4
    code, out, _ = command("generate", run, "--prompt", "the ", "--max-new-tokens", "5", "--prompt", "cat")
    assert code == 0
    assert out.startswith("the ")
    assert "\n---\ncat" in out
    code, out, _ = command("report", run)
    assert code == 0
    for name in ("loss.png", "perplexity.png"):
        assert (run / "report" / name).read_bytes().startswith(b"\x89PNG")
        assert name in out


def test_the_demo_makes_everything_and_reuses_it(command: Any, config: Path, tmp_path: Path) -> None:
    code, out, _ = command("demo", config)
    assert code == 0
    for promised in ("report/loss.png", "samples.jsonl", "step-00000020", "next:"):
        assert promised in out
    code, out, _ = command("demo", config)
    assert code == 0
    assert "reusing" in out
    assert "is finished: step 20 of 20" in out


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[2000] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train", "confg.yaml"], "config file confg.yaml does not exist; did you mean config.yaml?"),
        (["train", "empty/config.yaml"], "config file empty/config.yaml does not exist; configs/ holds examples"),
        (["train", "CONFIG", "train.stepz=3"], "unknown key train.stepz; did you mean steps?"),
        (["train", "CONFIG", "optim.lr_peak=fast"], "optim.lr_peak='fast': input should be a valid number"),
        (["train", "CONFIG", "train.steps"], "override 'train.steps' is not of the form section.key=value"),
        (["train", "CONFIG", "model.n_heads=3"], "n_heads=3 does not divide emb_dim=32"),
        (["train", "CONFIG", "model.vocab_size=256"], "set model.vocab_size=257 or more"),
        (["train", "CONFIG", "train.precision=fp16"], "train.precision=fp16 needs a CUDA device"),
        (["train", "CONFIG", "train.tokens_per_step=250"], "no multiple of model.context_length=32; the nearest is 256"),
        (["train", "CONFIG", "train.epochs=1"], "exactly one of steps, tokens and epochs"),
        (["train", "CONFIG", "data.dir=elsewhere"], "data.dir=elsewhere holds no corpus; run `gptscale prepare CONFIG`"),
        (["train", "CONFIG", "model.context_length=8192", "train.tokens_per_step=8192", "train.micro_batch_sequences=1"],
         "validation split holds"),
        (["prepare", "CONFIG", "data.source.path=missing.txt", "data.dir=new"], "missing.txt"),
        (["prepare", "CONFIG", "data.tokenizer=gpt3", "data.dir=new"], "data.tokenizer=gpt3 is unknown; did you mean gpt2?"),
        (["evaluate", "nowhere"], "nowhere does not exist; give a run folder"),
        (["evaluate", "."], "holds no checkpoint; give a run folder that `gptscale train` has saved to"),
        (["evaluate", ".", "--split", "test"], "--split=test is neither val nor train"),
        (["report", "nowhere"], "nowhere"),
        (["demo", "nowhere.yaml"], "nowhere.yaml does not exist; run this in a clone of gptscale, or give a config"),
        (["train", "CONFIG", "--steps", "5"], "No such option: --steps"),
        (["generate", "."], "Missing option '--prompt'."),
        (["train"], "Missing argument 'CONFIG'."),
        (["tran"], "No such command 'tran'"),
    ],
)  # fmt: skip
def test_a_mistake_gets_one_line_and_exit_code_2(
    command: Any, config: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], message: str
) -> None:
    monkeypatch.chdir(config.parent)
    code, _, err = command(*[config if a == "CONFIG" else a for a in args])
    assert code == 2
    assert message in err
    assert err.startswith("gptscale: ")
    assert len(err.splitlines()) == 1


def test_an_empty_text_is_no_corpus(command: Any, tmp_path: Path, values: dict[str, Any]) -> None:
    (tmp_path / "text.txt").write_text("")
    values["data"]["dir"] = str(tmp_path / "new")
    code, _, err = command("prepare", write(tmp_path, values))
    assert code == 2
    assert "text.txt" in err


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda shard: shard.write_bytes(shard.read_bytes()[:-10]), "bytes"),
        (flip_bit, "is damaged in its bytes"),
    ],
    ids=["cut-short", "flipped-bit"],
)
def test_a_damaged_shard_stops_training_and_prepare_mends_it(
    command: Any, config: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    shard = tmp_path / "corpus" / "train-00000.bin"
    whole = shard.read_bytes()
    damage(shard)
    code, _, err = command("train", config)
    assert code == 2
    assert "train-00000.bin" in err
    assert message in err
    assert "run prepare again" in err
    assert command("prepare", config)[0] == 0
    assert shard.read_bytes() == whole


def test_a_checkpoint_with_a_missing_part_gives_way_to_the_one_before(
    command: Any, config: Path, tmp_path: Path
) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"
    assert command("train", config)[0] == 0
    (checkpoints / "step-00000020" / "part-00000-of-00001.safetensors").unlink()
    code, out, _ = command("train", config, "train.steps=22")
    assert code == 0
    assert "WARNING: passing over a bad checkpoint, now " in out
    assert f"going on from {checkpoints / 'step-00000010'}" in out
    for path in checkpoints.glob("*/part-*"):
        path.unlink()
    code, _, err = command("train", config, "train.steps=30")
    assert code == 2
    assert "can be used" in err
    assert "part-00000-of-00001.safetensors is missing" in err
    assert len(err.splitlines()) == 1


def test_a_run_does_not_go_on_with_another_corpus(command: Any, tmp_path: Path, values: dict[str, Any]) -> None:
    assert command("train", write(tmp_path, values))[0] == 0
    (tmp_path / "text.txt").write_text("another text " * 3000)
    values["data"]["dir"] = str(tmp_path / "new")
    values["train"]["steps"] = 30
    config = write(tmp_path, values)
    assert command("prepare", config)[0] == 0
    code, _, err = command("train", config)
    assert code == 2
    assert "was trained on data" in err


@pytest.mark.parametrize(
    "setting",
    [
        "run.seed=12",
        "train.tokens_per_step=512",
        "data.stride=16",
        "model.n_heads=4",
        "model.vocab_size=300",
        "optim.name=muon",
    ],
)
def test_a_run_does_not_go_on_as_another_run(command: Any, config: Path, setting: str) -> None:
    assert command("train", config, "train.steps=2")[0] == 0
    code, _, err = command("train", config, "train.steps=4", setting)
    assert code == 2
    assert f"was started with {setting.split('=')[0]}=" in err


def test_a_run_folder_in_use_is_refused(command: Any, config: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with open(tmp_path / "run" / ".lock", "w+") as lock:
        lock.write("process 7 on node3")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, _, err = command("train", config)
    assert code == 2
    assert "is in use by process 7 on node3; stop that training, or choose another run.dir" in err
    assert command("train", config, "train.steps=2")[0] == 0


def test_a_run_folder_that_cannot_be_written_is_refused(command: Any, config: Path, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    code, _, err = command("train", config)
    assert code == 2
    assert "cannot be written: File exists" in err


def test_a_damaged_provenance_stops_no_run(command: Any, config: Path, tmp_path: Path) -> None:
    assert command("train", config, "train.steps=2")[0] == 0
    (tmp_path / "run" / "provenance.json").write_text('{"starts": [')
    assert command("train", config, "train.steps=4")[0] == 0
    starts = json.loads((tmp_path / "run" / "provenance.json").read_text())["starts"]
    assert [start["from_step"] for start in starts] == [2]
    assert (tmp_path / "run" / "provenance.damaged").exists()


def test_a_jump_of_the_learning_rate_is_told(command: Any, config: Path) -> None:
    assert command("train", config, "train.steps=10")[0] == 0
    code, out, _ = command("train", config, "train.steps=20", "optim.decay_steps=10")
    assert code == 0
    assert "jumps" not in out
    code, out, _ = command("train", config, "train.steps=40")
    assert code == 0
    assert "WARNING: the learning rate jumps from 0.001 to" in out
    assert "optim.decay_steps=20 keeps a longer run at optim.lr_floor" in out


def test_a_disk_without_room_stops_before_training(
    command: Any, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    code, _, err = command("train", config)
    assert code == 2
    assert "free some space or choose a run.dir on a larger disk" in err


def test_our_own_mistake_exits_with_1_and_a_traceback(
    command: Any, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptscale.training.run.make_plan", lambda *args: 1 / 0)
    code, _, err = command("train", config)
    assert code == 1
    assert "ZeroDivisionError" in err


@pytest.mark.parametrize("args", [[], *[[verb] for verb in VERBS]], ids=["gptscale", *VERBS])
def test_help_waits_for_no_heavy_library(args: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "gptscale", *args, "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "Usage: " in done.stdout
    imported = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "typer" in imported
    assert not imported & {"torch", "numpy", "yaml", "datasets", "accelerate", "wandb", "matplotlib", "rich"}
