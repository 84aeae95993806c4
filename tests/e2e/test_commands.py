"""The commands as a user types them, with their mistakes: one line that names the fix, and exit code 2."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from gptscale.cli.main import main
from gptscale.config.load import load_config
from gptscale.model.gpt import GPTModel

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]

VERBS = [
    "prepare",
    "plan",
    "train",
    "evaluate",
    "generate",
    "report",
    "import",
    "export",
    "verify",
    "inspect",
    "trace",
    "prove-resume",
    "demo",
]


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


def test_weights_go_out_and_in_and_start_a_run(command: Any, config: Path, tmp_path: Path) -> None:
    run, out_folder, back = tmp_path / "run", tmp_path / "exported", tmp_path / "back"
    assert command("train", config, "train.steps=12", "optim.lr_peak=0.02")[0] == 0
    _, trained, _ = command("evaluate", run, "--sequences", "16")  # the windows of the run's own evaluations
    code, out, _ = command("export", run, "--to", out_folder)
    assert code == 0
    assert f"exported to {out_folder}" in out
    code, out, _ = command(
        "import", out_folder, "--to", back, "data.tokenizer=bytes", f"data.dir={tmp_path / 'corpus'}"
    )
    assert code == 0
    assert "checked: names, shapes, finite values, logits (equal to transformers' within" in out
    assert command("evaluate", back, "--sequences", "16")[1] == trained
    for start in (back, run):
        again = [f"run.dir={tmp_path / 'from'}-{start.name}", f"model.init_from={start}", "model.drop_rate=0"]
        code, out, _ = command("train", config, "train.steps=2", *again)
        assert code == 0
        assert "starting from" in out
        first = json.loads((tmp_path / f"from-{start.name}" / "log.jsonl").read_text().splitlines()[0])
        assert first["val/loss"] == pytest.approx(float(trained.split()[2]), abs=1e-4)


def test_generate_has_many_ways(command: Any, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    assert command("train", config, "train.steps=12", "optim.lr_peak=0.02")[0] == 0
    few = ["--max-new-tokens", "6"]
    _, greedy, _ = command("generate", run, "--prompt", "the ", "--temperature", "0", *few)
    code, out, _ = command("generate", run, "--prompt", "the ", "--temperature", "0", "--log-probabilities", *few)
    assert code == 0
    assert out.startswith(greedy)
    said = [line.split() for line in out[len(greedy) :].splitlines()]
    assert len(said) == 6
    assert all(-10 < float(line[0]) < 0 for line in said)
    code, out, _ = command("generate", run, "--prompt", "the ", "--beams", "3", "--n-best", "2", *few)
    assert code == 0
    scores = [float(line.split()[-1]) for line in out.splitlines() if line.startswith("--- score")]
    assert len(scores) == 2
    assert scores == sorted(scores, reverse=True)
    more = ["--min-p", "0.1", "--top-p", "0.9", "--repetition-penalty", "1.2", "--stop", "q", "--seed", "3"]
    assert command("generate", run, "--prompt", "the ", *more, *few)[0] == 0
    hot = ["--temperature", "5", "--max-new-tokens", "20"]
    wide, all_ids, of_50 = (
        command("generate", run, "--prompt", "the ", "--top-k", k, *hot) for k in ("257", "0", "50")
    )
    assert (all_ids[0], all_ids[1]) == (0, wide[1])
    assert all_ids[1] != of_50[1]
    lines = iter(["the ", "cat "])

    def typed(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", typed)
    code, out, _ = command("generate", run, "--interactive", "--temperature", "0", *few)
    assert code == 0
    assert out.startswith(greedy)
    assert "\ncat " in out


def test_ctrl_c_ends_a_text_and_not_the_conversation(
    command: Any, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptscale.generation import text

    assert command("train", config, "train.steps=2")[0] == 0
    lines, stream = iter(["one ", "two "]), text.stream_text

    def typed(prompt: str) -> str:
        return next(lines, None) or _end()

    def _end() -> str:
        raise EOFError

    def interrupted(model: Any, tokenizer: Any, prompts: Any, **options: Any) -> Any:
        for number, piece in enumerate(stream(model, tokenizer, prompts, **options)):
            if prompts == ["one "] and number == 2:
                raise KeyboardInterrupt
            yield piece

    monkeypatch.setattr("builtins.input", typed)
    monkeypatch.setattr(text, "stream_text", interrupted)
    code, out, _ = command("generate", tmp_path / "run", "--interactive", "--max-new-tokens", "4")
    assert code == 0
    assert out.startswith("one ")
    assert "two " in out


def test_a_text_that_is_interrupted_promises_nothing(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gptscale.cli.generate._load", interrupted)
    assert command("generate", "run", "--prompt", "a") == (130, "", "gptscale: interrupted\n")


def test_a_text_for_which_a_gpu_has_no_room_can_be_written_on_the_cpu(
    command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def full(checkpoint: Path, device: torch.device) -> None:
        asked.append(device.type)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")

    monkeypatch.setattr("gptscale.checkpoint.model.load_model", full)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    code, _, err = command("generate", "anything", "--prompt", "a")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    command("generate", "anything", "--prompt", "a")
    assert asked == ["cuda", "cpu"]
    assert code == 1
    assert err == (
        "gptscale: rank 0 ran out of memory: CUDA out of memory. Tried to allocate 3 GiB; "
        "let nothing else use the device, or set ACCELERATE_USE_CPU=true\n"
    )


def test_what_a_terminal_cannot_show_is_shown_as_its_code(config: Path, tmp_path: Path, command: Any) -> None:
    assert command("train", config, "train.steps=2")[0] == 0
    done = subprocess.run(
        [sys.executable, "-m", "gptscale", "generate", "run", "--prompt", "caf\u00e9", "--max-new-tokens", "1"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("caf\\xe9")


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
        (["train", "CONFIG", "eval.sets={web: elsewhere}"], "eval.sets.web=elsewhere holds no corpus; run `gptscale prepare"),
        (["train", "CONFIG", "model.context_length=8192", "train.tokens_per_step=8192", "train.micro_batch_sequences=1"],
         "validation split holds"),
        (["prepare", "CONFIG", "data.source.path=missing.txt", "data.dir=new"], "missing.txt"),
        (["prepare", "CONFIG", "data.tokenizer=gpt3", "data.dir=new"], "data.tokenizer=gpt3 is unknown; did you mean gpt2?"),
        (["evaluate", "nowhere"], "nowhere does not exist; give a run folder"),
        (["evaluate", "."], "holds no checkpoint; give a run folder that `gptscale train` has saved to"),
        (["evaluate", ".", "--split", "test"], "--split=test is neither val nor train"),
        (["evaluate", ".", "--split", "train", "--set", "web"], "--set names what is evaluated; leave out --split"),
        (["evaluate", ".", "--data-dir", ".", "--set", "web"], "--set names what is evaluated; leave out --data-dir"),
        (["train", "CONFIG", "data.stride=33"], "data.stride=33 would leave out the tokens between samples"),
        (["train", "CONFIG", "data.validation_fraction=0.2", "data.end_of_text=false"],
         "prepared with data.validation_fraction=0.1, not 0.2, data.end_of_text=True, not False; set that again"),
        (["train", "CONFIG", "data.source=null", "data.dir=null", "data.mixture=[{dir: corpus, weigth: 1}]"],
         "unknown key data.mixture.0.weigth; did you mean weight?"),
        (["demo", "CONFIG", "data.source=null"], "names no data.source, from which a demo makes its corpus"),
        (["prepare", "CONFIG", "data.dir=new", "data.source.split=test"],
         "all of which is read; set data.source.split=train, or name the very files by data.source.path"),
        (["prepare", "CONFIG", "data.dir=new", "data.source.data_files=[a.txt]"], "read; set data.source.data_files=[], or"),
        (["prepare", "CONFIG", "data.dir=new", "data.source.text_column=body"],
         "data.source.text_column='body' is of no use: "),
        (["report", ".", "--live", "--to", "x.html"], "--live serves the page and writes nothing; leave out --to"),
        (["report", "nowhere"], "nowhere"),
        (["evaluate", "y" * 300], "yyy/manifest.json: File name too long; choose a shorter one"),
        (["trace", "nowhere", "--step", "1"], "nowhere holds no config.yaml; give a run folder that `gptscale train` has written to"),
        (["trace", ".", "--step", "0"], "Invalid value for '--step'"),
        (["prove-resume", "CONFIG", "--engine-before", "zero4"], "engine zero4 is unknown; choose one of none, ddp, zero1"),
        (["import", "."], "import needs --to DIR for weights alone, or --into CONFIG for weights and AdamW's state"),
        (["import", ".", "--to", "new", "--into", "CONFIG"], "import needs --to DIR for weights alone, or --into CONFIG"),
        (["import", ".", "--into", "CONFIG"], ". is no folder of Accelerate's save_state"),
        (["verify", "."], ". is no checkpoint, no run with checkpoints and no corpus; there is nothing to verify"),
        (["demo", "nowhere.yaml"], "nowhere.yaml does not exist; run this in a clone of gptscale, or give a config"),
        (["plan", "CONFIG", "--gpus", "0"], "Invalid value for '--gpus'"),
        (["plan", "CONFIG", "--gpus", "9"], "--gpus=9 is more than the 8 sequences of a step; use 8 GPUs or fewer"),
        (["plan", "CONFIG", "--gpus", "2", "--engine", "zero4"], "--engine=zero4 is unknown; choose one of none, ddp, zero1"),
        (["plan", "CONFIG", "--gpus", "2", "--engine", "none"], "--engine=none is one process, not 2; choose ddp"),
        (["plan", "CONFIG", "--gpu", "h1000"], "--gpu=h1000 is unknown; choose one of b200, h200-nvl, h200"),
        (["plan", "CONFIG", "--bandwidth", "inf"], "Invalid value for '--bandwidth'"),
        (["plan", "CONFIG", "--disk", "inf"], "Invalid value for '--disk'"),
        (["plan", "CONFIG", "--mfu", "40"], "Invalid value for '--mfu'"),
        (["plan", "CONFIG", "--from", "nowhere"], "--from=nowhere is no run; give a run folder that `gptscale train` has"),
        (["plan", "CONFIG", "train.precision=bf16-sharded"], "bf16-sharded needs an engine that shards, and --engine=none"),
        (["plan", "CONFIG", "optim.warmup_steps=20"], "optim.warmup_steps=20 leaves nothing of the run's 20 steps"),
        (["train", "CONFIG", "--steps", "5"], "No such option: --steps"),
        (["generate", "."], "generate needs --prompt TEXT, once or several times, or else --interactive"),
        (["generate", ".", "--prompt", "a", "--interactive"], "generate needs --prompt TEXT, once or several times"),
        (["generate", ".", "--interactive", "--beams", "2"], "--beams searches whole texts; leave out --interactive"),
        (["generate", ".", "--prompt", "a", "--n-best", "2"], "--n-best=2 shows what --beams finds; give --beams 2 or more"),
        (["generate", ".", "--prompt", "a", "--beams", "2", "--top-p", "1", "--seed", "0"],
         "--beams searches the likeliest text and draws nothing; leave out --top-p, --seed"),
        (["generate", ".", "--prompt", "a", "--length-penalty", "1"], "only --beams reads that; leave out --length-penalty"),
        (["generate", ".", "--prompt", "a", "--stop", ""], "--stop is empty; give at least one character"),
        (["generate", ".", "--prompt", "a", "--length-penalty", "nan"], "Invalid value for '--length-penalty'"),
        (["evaluate", ".", "--cloze", "missing.jsonl"], "missing.jsonl cannot be read"),
        (["report", ".", "--live", "--port", "70000"], "Invalid value for '--port'"),
        (["prove-resume", "CONFIG", "--scratch", "text.txt"], "--scratch=text.txt is no folder to write in: File exists"),
        (["import", "gpt2-larg", "--to", "new"], "no name of GPT-2's; did you mean gpt2-large?"),
        (["export", "nowhere", "--to", "new"], "nowhere does not exist; give a run folder"),
        (["export", ".", "--to", "new", "--format", "onnx"], "--format=onnx is none of transformers, nanogpt"),
        (["train", "CONFIG", "model.init_from=./nowhere"], "./nowhere does not exist; give a file, a folder, a run"),
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


def test_verify_reads_checkpoints_and_corpora_again(command: Any, config: Path, tmp_path: Path) -> None:
    run, corpus = tmp_path / "run", tmp_path / "corpus"
    assert command("train", config)[0] == 0
    code, out, _ = command("verify", run, "--finite")
    assert code == 0
    assert f"{run / 'checkpoints' / 'step-00000020'}: good, 1 files, " in out
    assert out.endswith("2 of 2 checkpoints are good\n")
    flip_bit(run / "checkpoints" / "step-00000020" / "part-00000-of-00001.safetensors")
    code, out, err = command("verify", run)
    assert code == 2
    assert (
        err
        == f"gptscale: {run}/checkpoints/step-00000020/part-00000-of-00001.safetensors is damaged: its hash is not the one in manifest.json\n"
    )
    assert "step-00000020: BAD, 1 problems" in out
    assert out.endswith("1 of 2 checkpoints are good\n")
    assert command("verify", run / "checkpoints" / "step-00000010")[0] == 0
    assert command("verify", corpus)[1].startswith(f"{corpus}: good, 2 shards, ")
    flip_bit(corpus / "train-00000.bin")
    code, _, err = command("verify", corpus)
    assert code == 2
    assert "train-00000.bin is damaged" in err
    assert len(err.splitlines()) == 1
    (corpus / "val-00000.bin").unlink()
    (corpus / "unit-00000.json").write_text("{")
    code, out, err = command("verify", corpus)
    assert (code, out) == (2, f"{corpus}: BAD, 3 problems\n")
    assert [line.split()[1:3] for line in err.splitlines()] == [
        ["shard", f"{corpus}/train-00000.bin"],
        ["shard", f"{corpus}/val-00000.bin"],
        [f"{corpus}/unit-00000.json", "is"],
    ]


def test_inspect_shows_what_is_in_a_checkpoint(command: Any, config: Path, tmp_path: Path) -> None:
    assert command("train", config, "optim.name=muon")[0] == 0
    code, out, _ = command("inspect", tmp_path / "run")
    assert code == 0
    assert "step-00000020: step 20, written by none x1, " in out
    head, norm, matrix = (
        next(line.split() for line in out.splitlines() if line.startswith(name))
        for name in ("tensor ", "final_norm.weight ", "blocks.0.ff.fc.weight ")
    )
    assert head[:4] == ["tensor", "shape", "parts", "|weight|"]
    by_kind = dict(zip(head, matrix, strict=True))
    assert (by_kind["shape"], by_kind["|exp_avg|"], by_kind["updates"]) == ("128x32", "-", "-")
    assert float(by_kind["|momentum_buffer|"]) > 0
    by_kind = dict(zip(head, norm, strict=True))
    assert (by_kind["shape"], by_kind["|momentum_buffer|"], by_kind["updates"]) == ("32", "-", "20")
    assert "  samples: 160\n" in out
    assert '  optim.name="muon"\n' in out
    assert "clip_norm" not in out
    found = json.loads(command("inspect", tmp_path / "run", "--json")[1])
    assert (found["ledger"]["step"], found["world"], len(found["files"])) == (20, 1, 1)


def test_what_is_in_a_checkpoint_that_diverged_is_json(command: Any, config: Path, tmp_path: Path) -> None:
    wild = ("optim.lr_peak=1e30", "optim.lr_floor=1e29", "optim.clip_norm=null", "train.log_every_steps=100")
    command("train", config, *wild)
    said = command("inspect", tmp_path / "run", "--json")[1]
    found = json.loads(said, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert found["ledger"]["val_loss"] is None
    (manifest,) = (tmp_path / "run").rglob("step-00000020/manifest.json")
    json.loads(manifest.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_trace_shows_the_text_that_a_step_read(command: Any, config: Path, tmp_path: Path) -> None:
    run, text = tmp_path / "run", (tmp_path / "text.txt").read_text()
    assert command("train", config, "train.steps=2")[0] == 0
    code, out, _ = command("trace", run, "--step", "2", "--json", "--full")
    assert code == 0
    samples = [json.loads(line) for line in out.splitlines()]
    assert [s["position"] for s in samples] == list(range(8, 16))  # 8 sequences of 32 tokens in each step
    for sample in samples:
        (piece,) = sample["pieces"]  # the corpus is one document: an end-of-text token, then one token a byte
        assert piece["text"].removeprefix("<|endoftext|>") == text[max(0, sample["start"] - 1) : sample["stop"] - 1]
    code, out, _ = command("trace", run, "--step", "2")
    assert code == 0
    assert f"position 8: epoch 0, sample {samples[0]['sample']}, tokens {samples[0]['start']} to " in out
    assert f"{tmp_path / 'corpus' / 'train-00000.bin'} at token {samples[0]['start']}: document 0 (row 0" in out
    code, _, err = command("trace", run, "--step", "3")
    assert (code, err) == (2, f"gptscale: --step=3 is behind the last step of {run}; give a step from 1 to 2\n")
    (tmp_path / "text.txt").write_text("another text " * 3000)
    assert command("prepare", config, f"data.dir={tmp_path / 'new'}")[0] == 0
    code, _, err = command("trace", run, "--step", "1", "--data-dir", tmp_path / "new")
    assert code == 2
    assert "was trained on data" in err
    assert "give the corpus of the run with --data-dir" in err


def test_a_training_of_others_is_imported_and_goes_on(command: Any, config: Path, tmp_path: Path) -> None:
    model = GPTModel(load_config(config).model, seed=1)
    optimizer = torch.optim.AdamW(model.parameters())
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    optimizer.step()
    (tmp_path / "saved").mkdir()
    save_file(
        {f"module.{name}": p.detach() for name, p in model.named_parameters()}, tmp_path / "saved" / "model.safetensors"
    )
    torch.save(optimizer.state_dict(), tmp_path / "saved" / "optimizer.bin")
    code, out, _ = command("import", tmp_path / "saved", "--into", config)
    path = tmp_path / "run" / "checkpoints" / "step-00000002"
    assert code == 0
    assert out == f"{tmp_path / 'saved'} is now {path}; `gptscale train {config}` goes on from there\n"
    assert command("verify", path)[0] == 0
    code, out, _ = command("train", config, "train.steps=4")
    assert code == 0
    assert f"going on from {path}" in out
    assert "step 4/4" in out
    code, _, err = command("import", tmp_path / "saved", "--into", config)
    assert code == 2
    assert "has checkpoints of its own; import into a new run.dir" in err


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


def test_a_run_folder_that_cannot_be_written_is_refused(command: Any, config: Path, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    code, _, err = command("train", config)
    assert code == 2
    assert "cannot be written: Not a directory; free space, mend its permissions, or choose another" in err


def test_a_damaged_provenance_stops_no_run(command: Any, config: Path, tmp_path: Path) -> None:
    assert command("train", config, "train.steps=2")[0] == 0
    (tmp_path / "run" / "provenance.json").write_text('{"starts": ' + "[" * 100_000)
    assert command("train", config, "train.steps=4")[0] == 0
    starts = json.loads((tmp_path / "run" / "provenance.json").read_text())["starts"]
    assert [start["from_step"] for start in starts] == [2]
    assert (tmp_path / "run" / "provenance.damaged").exists()


def test_a_jump_of_the_learning_rate_is_told(command: Any, config: Path) -> None:
    assert command("train", config, "train.steps=10")[0] == 0
    code, out, _ = command("train", config, "train.steps=20", "optim.decay_steps=10")
    assert code == 0
    assert "jumps" not in out
    code, out, _ = command("train", config, "train.steps=30", "optim.decay_steps=10")
    assert "jumps" not in out
    code, out, _ = command("train", config, "train.steps=40")
    assert code == 0
    assert "WARNING: the learning rate jumps from 0.001 to" in out
    assert "optim.decay_steps=10 keeps the schedule that it had, which ends at optim.lr_floor" in out


def test_a_disk_without_room_stops_before_training(
    command: Any, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    code, _, err = command("train", config)
    assert code == 2
    assert "free some space, lower checkpoint.keep, or choose a run.dir on a larger disk" in err


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


def test_an_import_of_a_run_keeps_its_tokenizer(command: Any, config: Path, tmp_path: Path) -> None:
    """Also where the vocabulary has room for GPT-2's."""
    assert command("train", config, "model.vocab_size=50304", "train.steps=2")[0] == 0
    code, out, _ = command("import", tmp_path / "run", "--to", tmp_path / "imported")
    assert (code, "tokenizer where none is said" in out) == (0, False)
    (manifest,) = (tmp_path / "imported").rglob("manifest.json")
    assert json.loads(manifest.read_text())["config"]["data"]["tokenizer"] == "bytes"


def test_a_demo_takes_settings_without_a_config(command: Any, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptscale.cli.demo.DEMO", config)
    code, out, _ = command("demo", "train.steps=3", "train.log_every_steps=1")
    assert (code, "step 3/3" in out) == (0, True)


def test_the_home_of_an_unknown_user_is_no_weights(command: Any, config: Path) -> None:
    code, _, err = command("train", config, "model.init_from=~nosuchuser/x")
    assert (code, err) == (2, "gptscale: ~nosuchuser/x does not exist; give a file, a folder, a run or a Hub name\n")
