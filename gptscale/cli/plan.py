"""gptscale plan: memory, time and disk of a run, before it starts."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptscale.cli.arguments import ConfigFile, Overrides
from gptscale.errors import ConfigError

if TYPE_CHECKING:
    from gptscale.config.schema import Config
    from gptscale.planning.launch import Launch
    from gptscale.planning.rates import Measured
    from gptscale.runtime.gpus import Gpu

DOES_NOT_FIT = 1

ASSUMED_DISK = 1e9
"""Bytes per second, where nothing was measured."""


def run_plan(
    config: ConfigFile,
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs over all machines.")] = 1,
    engine: Annotated[
        str | None,
        typer.Option(help="none, ddp, zero1, zero2, zero3, zero3-offload, fsdp2, hsdp; without it none or ddp."),
    ] = None,
    machine_gpus: Annotated[
        int, typer.Option(min=1, help="GPUs of one machine; what goes beyond it goes over the network.")
    ] = 8,
    dp_shard_size: Annotated[
        int | None,
        typer.Option(min=1, help="GPUs that share a copy of the state under hsdp; without it those of a machine."),
    ] = None,
    gpu: Annotated[str | None, typer.Option(help="Which GPU; without it that of --from, else h100.")] = None,
    mfu: Annotated[
        float | None, typer.Option(min=0.001, max=1, help="Share of the GPU's peak that computing reaches.")
    ] = None,
    bandwidth: Annotated[
        float | None,
        typer.Option(min=0.001, max=1e6, help="GB/s from GPU to GPU over all of them: nccl-tests' busbw."),
    ] = None,
    disk: Annotated[float | None, typer.Option(min=0.001, max=1e6, help="GB/s to the disk of run.dir.")] = None,
    from_run: Annotated[
        Path | None, typer.Option("--from", metavar="RUN", help="A run folder, to go by its measured speed.")
    ] = None,
    tokens: Annotated[
        float | None, typer.Option(min=1, max=1e18, help="Tokens to plan for beside the run's own.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")] = False,
) -> None:
    """What CONFIG takes on so many GPUs: memory for every engine, step time, hours, disk. Needs no GPU and no corpus.

    Exits with 1 if it does not fit into a GPU's memory, and says what would.
    """
    from gptscale.config.load import load_config
    from gptscale.planning.launch import Launch
    from gptscale.planning.outlook import look_ahead
    from gptscale.planning.rates import plan_rates, shared
    from gptscale.planning.table import lines

    cfg = load_config(config, overrides or ())
    run = None if from_run is None else _measured(from_run, machine_gpus)
    card = _card(gpu, run, gpus)
    engine = engine or ("none" if gpus == 1 else "ddp")
    launch = _with_micro_batch(Launch(engine, gpus, 1, machine_gpus, dp_shard_size), cfg, card)
    reached = mfu or _reached(run, card, launch, _bytes(bandwidth))
    card = shared(card, run, gpus) if run else card
    written = _bytes(disk) or (run.disk_bytes_per_s if run else None) or ASSUMED_DISK
    steps, length = _length(cfg, launch)
    plan = look_ahead(
        cfg,
        launch,
        card,
        plan_rates(cfg, card, launch, mfu=reached, bandwidth=_bytes(bandwidth)),
        disk_bytes_per_s=written,
        total_steps=steps,
        budgets={"--tokens": int(tokens)} if tokens else {},
    )
    source = "given" if mfu else f"measured in {from_run}" if run else "assumed; see --mfu and --from"
    said = "\n".join(lines(plan, f"{reached:.0%} of the peak ({source})", length))
    print(json.dumps({**asdict(plan), "mfu": reached}, indent=1) if as_json else said)
    if not plan.fits:
        raise typer.Exit(DOES_NOT_FIT)


def _with_micro_batch(launch: "Launch", cfg: "Config", card: "Gpu") -> "Launch":
    """The launch with the config's micro-batch, or the largest that fits."""
    from gptscale.planning.memory import largest_micro_batch

    number = cfg.train.micro_batch_sequences or largest_micro_batch(cfg, launch, card) or 1
    return replace(launch, micro_batch_sequences=number)


def _reached(run: "Measured | None", card: "Gpu", launch: "Launch", bandwidth: float | None) -> float:
    """The share of the GPU's peak that a run reached; a bandwidth is its too if both or none go over a network."""
    from gptscale.planning.rates import ASSUMED_MFU, calibrated_mfu

    if run is None:
        return ASSUMED_MFU
    alike = (run.launch.gpus > launch.machine_gpus) == (launch.gpus > launch.machine_gpus)
    return calibrated_mfu(run, card, bandwidth if alike else None)


def _bytes(gigabytes: float | None) -> float | None:
    return None if gigabytes is None else gigabytes * 1e9


def _card(name: str | None, run: "Measured | None", ranks: int) -> "Gpu":
    """The GPU that is named, or the one that a run was measured on; ranks on a CPU share this machine's memory."""
    from gptscale.planning.rates import find_gpu, processor
    from gptscale.runtime.gpus import gpu_of_product

    if run is None:
        return find_gpu(name or "h100")
    if run.device.startswith("CPU"):
        if name is not None:
            raise ConfigError(
                f"--from was measured on {run.device}, which says nothing about --gpu={name}; give one of them"
            )
        return processor(run, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // ranks)
    if name is not None:
        return find_gpu(name)
    known = gpu_of_product(run.device)
    if known is None:
        raise ConfigError(
            f"--from was measured on {run.device}, which is not known; say with --gpu which it is most like"
        )
    return known


def _measured(folder: Path, machine_gpus: int) -> "Measured":
    from gptscale.config.load import load_config
    from gptscale.planning.launch import Launch
    from gptscale.planning.rates import measured
    from gptscale.tracking.jsonl import LOG_FILE, read_log
    from gptscale.tracking.provenance import last_start

    start = last_start(folder)
    if not start or not (folder / "config.yaml").is_file():
        raise ConfigError(f"--from={folder} is no run; give a run folder that `gptscale train` has written to")
    cfg, records = load_config(folder / "config.yaml"), read_log(folder / LOG_FILE)
    launch = Launch(
        start["engine"], start["world"], machine_gpus=machine_gpus, dp_shard_size=start.get("dp_shard_size")
    )
    return measured(folder, cfg, start["device"], launch, records, start.get("from_step", 0))


def _length(cfg: "Config", launch: "Launch") -> tuple[int | None, str]:
    """The run's steps, or else why they are not known."""
    from gptscale.data.manifest import FILE_NAME
    from gptscale.training.plan import make_plan

    samples = 1
    if cfg.train.epochs is not None:
        folders = [cfg.data.dir] if cfg.data.dir else [corpus.dir for corpus in cfg.data.mixture]
        if not all((folder / FILE_NAME).is_file() for folder in folders):
            epochs = f"train.epochs={cfg.train.epochs:g}"
            return None, f"{epochs} of a corpus that is not there yet; --tokens plans for a number"
        from gptscale.data.corpora import open_corpora  # takes a while, and the corpus is rarely there yet

        samples = open_corpora(cfg).sampler(cfg).samples
    launched = cfg.with_changes(train={"micro_batch_sequences": launch.micro_batch_sequences})
    return make_plan(launched, samples, launch.gpus).total_steps, ""
