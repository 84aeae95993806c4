"""gptscale export: a checkpoint for other people's programs."""

from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptscale.cli.arguments import Checkpoint
from gptscale.cli.new_folder import new_folder
from gptscale.errors import WeightsError

if TYPE_CHECKING:
    from gptscale.checkpoint.layout import CheckpointManifest
    from gptscale.config.schema import Config

MEGABYTE = 1_000_000
FORMATS = ("transformers", "nanogpt")


def run_export(
    checkpoint: Checkpoint,
    to: Annotated[Path, typer.Option(help="The folder to make.")],
    form: Annotated[str, typer.Option("--format", help="transformers or nanogpt.")] = "transformers",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    part_size_mb: Annotated[int, typer.Option(min=1, help="Most megabytes of one safetensors file.")] = 1000,
) -> None:
    """Write a folder that transformers, vLLM and the evaluation harness load, or nanoGPT's ckpt.pt."""
    for line in [*export(checkpoint, to, form=form, dtype=dtype, part_size_mb=part_size_mb), f"exported to {to}"]:
        print(line)


def export(
    checkpoint: str | Path,
    to: str | Path,
    *,
    form: str = "transformers",
    dtype: str = "float32",
    part_size_mb: int = 1000,
) -> list[str]:
    """Export a checkpoint, or a run's newest, into a new folder; needs no GPU, and memory for one part.

    nanoGPT's one file needs memory for all of it.
    Gives what the reader should know of it.
    Raises WeightsError if the other program could not compute the same, or a value does not fit dtype.
    """
    from gptscale.checkpoint.model import find_checkpoint
    from gptscale.checkpoint.source import checkpoint_source
    from gptscale.cli.own_tokenizer import own_tokenizer
    from gptscale.config.load import parse_config
    from gptscale.weights.export import DTYPES, write_nanogpt, write_transformers
    from gptscale.weights.tokenizer import write_tokenizer

    if form not in FORMATS:
        raise WeightsError(f"--format={form} is none of {', '.join(FORMATS)}")
    if dtype not in DTYPES:
        raise WeightsError(f"--dtype={dtype} is none of {', '.join(DTYPES)}")
    with new_folder(Path(to)) as new:
        folder, manifest = find_checkpoint(Path(checkpoint))
        cfg = parse_config(manifest.config, str(folder))
        source = checkpoint_source(folder, manifest)
        tokenizer = own_tokenizer(cfg)
        if form == "nanogpt":
            loss = losses(folder, manifest.step).get("val/loss", inf)
            write_nanogpt(new, source, cfg.model, tokenizer, dtype, manifest.step, loss)
        else:
            write_transformers(new, source, cfg.model, tokenizer, dtype, part_size_mb * MEGABYTE)
            write_tokenizer(new, tokenizer, cfg.model.context_length)
            (new / "README.md").write_text(_card(Path(to).name, folder, manifest, cfg), encoding="utf-8")
    if form == "nanogpt" and cfg.model.gelu != "erf":
        return ["nanoGPT computes GELU exactly, this model in its tanh form: the logits will be slightly others there"]
    return []


def losses(folder: Path, step: int) -> dict[str, float]:
    """The last losses that a checkpoint's run has measured up to a step."""
    from gptscale.tracking.jsonl import LOG_FILE, read_log

    last: dict[str, float] = {}
    for record in read_log(folder.parent.parent / LOG_FILE):
        if record["step"] <= step:
            last |= {name: record[name] for name in ("train/loss", "val/loss") if name in record}
    return last


def _card(name: str, folder: Path, manifest: "CheckpointManifest", cfg: "Config") -> str:
    from gptscale import __version__
    from gptscale.checkpoint.imported import IMPORTED
    from gptscale.model.size import model_size
    from gptscale.weights.card import model_card

    parameters = model_size(cfg.model).parameters
    words = {"train/loss": "training loss", "val/loss": "validation loss"}
    if manifest.engine == IMPORTED:
        return model_card(cfg, name, parameters, __version__, {"none": f"weights of {_data(cfg)}"})
    training = {
        "data": _data(cfg),
        "data fingerprint": manifest.data_fingerprint[:12] or "none",
        "steps": f"{manifest.step:,}",
        "tokens": f"{manifest.ledger['samples'] * cfg.model.context_length:,}",
        **{words[m]: f"{loss:.4f} nats per token" for m, loss in losses(folder, manifest.step).items()},
    }
    if cfg.model.init_from:
        training["started from"] = cfg.model.init_from
    return model_card(cfg, name, parameters, __version__, training)


def _data(cfg: "Config") -> str:
    """What a model was trained on, in words."""
    if cfg.data.mixture:
        return ", ".join(f"{corpus.label} ({corpus.weight:g})" for corpus in cfg.data.mixture)
    return cfg.data.source.path if cfg.data.source else str(cfg.data.dir)
