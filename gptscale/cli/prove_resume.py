"""gptscale prove-resume: train, kill, resume, and show that nothing differs."""

import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptscale.cli.arguments import ConfigFile, Overrides
from gptscale.errors import TrainingError

if TYPE_CHECKING:
    from gptscale.training.proof import Proof

NOT_PROVED = 1
_ENGINES = "none, ddp, zero1, zero2, zero3, fsdp2 or hsdp."


def run_prove_resume(
    config: ConfigFile,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=4, help="Length of the runs.")] = 20,
    engine_before: Annotated[str, typer.Option(help=f"Engine up to the kill: {_ENGINES}")] = "none",
    ranks_before: Annotated[int | None, typer.Option(min=1, help="2 without it, or 1 for none.")] = None,
    engine_after: Annotated[str | None, typer.Option(help="Engine after the kill; the same without it.")] = None,
    ranks_after: Annotated[int | None, typer.Option(min=1, help="As many as before without it.")] = None,
    scratch: Annotated[Path | None, typer.Option(help="Where to train; RUN.DIR.prove-resume without it.")] = None,
) -> None:
    """Train, train again with SIGKILL in the middle and a resume, and compare every step.

    Exits with 0 if the traces are equal bit for bit, or, where engine or ranks change, within 1e-5
    (fp32) or with losses within 1e-3 (16 bits).
    """
    from gptscale.config.load import load_config
    from gptscale.runtime.processes import Place
    from gptscale.training.proof import prove_resume

    cfg = load_config(config, overrides or ())
    before = Place(engine_before, ranks_before or (1 if engine_before == "none" else 2))
    engine = engine_after or engine_before
    after = Place(engine, ranks_after or (1 if engine == "none" else before.ranks))
    folder = _empty_folder(scratch or Path(f"{cfg.run.dir.resolve()}.prove-resume"))
    print(f"three runs of up to {steps} steps in {folder}: {before}, {before} until it is killed, {after}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # by way of what ends the ranks
    proof = prove_resume(cfg, steps, before, after, folder)
    _print_traces(proof)
    print(proof.verdict())
    if not proof.holds:
        print(f"everything is kept in {folder}")
        raise typer.Exit(NOT_PROVED)
    shutil.rmtree(folder)


def _empty_folder(folder: Path) -> Path:
    marker = folder / ".prove-resume"
    if marker.exists():
        shutil.rmtree(folder)  # of an earlier proof
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise TrainingError(f"--scratch={folder} is not empty; choose a new folder")
        marker.touch()
    except OSError as error:
        raise TrainingError(
            f"--scratch={folder} is no folder to write in: {error.strerror}; choose a new one"
        ) from None
    return folder


def _print_traces(proof: "Proof") -> None:
    print(f"{'step':>6}  {'loss':>13}  {'resumed':>13}  {'gradient norm':>13}  {'resumed':>13}")
    for step, (loss, norm) in proof.whole.items():
        other_loss, other_norm = proof.resumed[step]
        difference = proof.difference_at(step)
        sign = f"differs by {difference:.1e}" if difference else "="
        print(f"{step:6}  {loss:13.9g}  {other_loss:13.9g}  {norm:13.9g}  {other_norm:13.9g}  {sign}")
        if step == proof.resumed_from:
            print(f"        -- checkpoint; killed after step {proof.killed_after}, resumed as {proof.after} --")
