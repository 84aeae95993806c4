"""gptscale's training step beside its peers': the same weights and batches, one machine, interleaved rounds.

    python benchmarks/train.py --shape 6x384 --nanogpt ~/nanoGPT --book ~/LLMs-from-scratch [--rounds 5] [--json FILE]

A peer whose code is not given is left out: nanoGPT and the book by the path of their repository, Hugging Face's Trainer
where transformers is installed. First the gate: over --gate-steps, every loss must be that of gptscale to 1e-2. Then
each does --steps steps in every round. The table has medians over the rounds, with the least and the most in
brackets; what compares two of them is the median of the rounds' ratios.

--precision is that of gptscale and of the peers that can be told: bf16 where the machine computes it in hardware, else
fp32. Rows say theirs. The book's loop stands there twice: its bare step, as the others', and after the gate with what
else it documents, dropout of 0.1 and its evaluations. Nobody else does these, so that row is not like for like.
"""

import argparse
import importlib.util
import json
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from mistakes import folder_with, positive, told
from side_by_side import (
    SEQUENCES,
    SHAPES,
    TOLERANCE,
    Contestant,
    Setup,
    best_matmul_flops,
    hardware_precision,
    interleaved,
    largest_difference,
    ratios,
    write_batches,
)

from gptscale.config.schema import ModelConfig
from gptscale.model.size import flops_per_token
from gptscale.runtime.device import describe_device, local_device

BATCHES = 50
PEERS = ("gptscale_step", "nanogpt", "huggingface", "book")
BOOK_MODEL = "ch05/01_main-chapter-code/previous_chapters.py"
BOOK_EVAL_STEPS = 5
WHOLE_BOOK = "the book, fp32, with dropout and evaluations"


def main() -> int:
    """Measure and print; gives the exit code."""
    asked = arguments()
    model = SHAPES[asked.shape]
    sequences = asked.sequences or SEQUENCES[asked.shape]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        batches = Path(folder, "batches.npy")
        write_batches(batches, BATCHES, sequences, ModelConfig(**model).context_length)
        contestants: list[Contestant] = []
        ours = Setup("gptscale_step", model, str(batches), precision=asked.precision)
        for name, setup in chosen(asked, ours).items():
            own_cache = {"TORCHINDUCTOR_CACHE_DIR": str(Path(folder, f"cache-{len(contestants)}"))}  # no spaces
            contestants.append(stack.enter_context(Contestant(name, setup, env=own_cache)).wait())
            print(f"{name}: first step after {contestants[-1].first_step_s:.1f} s", flush=True)
        for contestant in contestants if asked.gate_steps > 1 else ():
            contestant.turn(asked.gate_steps - 1)
        seconds = interleaved(contestants, asked.rounds, asked.steps)
    rows = results(contestants, seconds, sequences)
    show(rows, asked, model)
    same = all(row["loss_difference"] <= TOLERANCE for row in rows)
    print(f"gate: {'same' if same else 'DIFFERENT'} losses over {asked.gate_steps} steps, to {TOLERANCE} nats")
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0 if same else 1


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="6x384")
    parser.add_argument("--sequences", type=positive, help="in a batch; the default is 8 for 6x384 and 4 for 124m")
    parser.add_argument("--nanogpt", type=folder_with("model.py"), help="path of nanoGPT's repository")
    parser.add_argument("--book", type=folder_with(BOOK_MODEL), help="path of the book's repository, LLMs-from-scratch")
    parser.add_argument("--only", nargs="+", choices=PEERS, help="others that take part; gptscale_step: not compiled")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default=hardware_precision(local_device()))
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--steps", type=positive, default=4, help="of each in a round")
    parser.add_argument("--gate-steps", type=positive, default=BATCHES)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    for peer in ("nanogpt", "book"):
        if peer in (asked.only or ()) and not getattr(asked, peer):
            parser.error(f"--only {peer} needs --{peer} PATH")
    if asked.json and not asked.json.parent.is_dir():
        parser.error(f"--json={asked.json} would lie in a folder that is not there")
    return asked


def chosen(asked: argparse.Namespace, ours: Setup) -> dict[str, Setup]:
    """Who takes part, ours first; says who does not."""
    precision = ours.precision
    taking_part = {f"gptscale, {precision}": ours}
    paths = {"nanogpt": asked.nanogpt, "book": asked.book}
    for name, setup in {
        f"gptscale, {precision}, not compiled": replace(ours, compile=False),
        "nanoGPT, fp32": replace(ours, peer="nanogpt", precision="fp32", compile=False),
        f"nanoGPT, {precision}, compiled": replace(ours, peer="nanogpt"),
        f"Trainer, {precision}": replace(ours, peer="huggingface", compile=False),
        f"Trainer, {precision}, compiled": replace(ours, peer="huggingface"),
        "the book, fp32": replace(ours, peer="book", precision="fp32", compile=False),
        WHOLE_BOOK: replace(ours, peer="book", precision="fp32", compile=False, gate_steps=asked.gate_steps),
    }.items():
        if asked.only and setup.peer not in asked.only:
            continue
        if setup.peer in paths and not paths[setup.peer]:
            print(f"{name}: left out, since --{setup.peer} is not given")
        elif name == WHOLE_BOOK and asked.steps % BOOK_EVAL_STEPS:
            print(f"{name}: left out, since it evaluates every {BOOK_EVAL_STEPS} steps: ask for --steps 5 or 10")
        elif setup.peer == "huggingface" and importlib.util.find_spec("transformers") is None:
            print(f"{name}: left out, since transformers is not installed")
        else:
            taking_part[name] = replace(setup, path=paths.get(setup.peer))
    return taking_part


def results(contestants: Sequence[Contestant], seconds: dict[str, list[float]], sequences: int) -> list[dict[str, Any]]:
    """A row for each contestant, as it goes into the JSON file."""
    cfg = ModelConfig(**contestants[0].setup.model)
    ours = contestants[0]
    tokens = sequences * cfg.context_length
    dtypes = {"bf16": torch.bfloat16, "fp32": torch.float32}
    peaks = {p: best_matmul_flops(dtypes[p], local_device()) for p in {c.setup.precision for c in contestants}}
    gate = [zip(ours.losses[: c.setup.gate_steps], c.losses, strict=False) for c in contestants]
    return [
        {
            "name": c.name,
            "tokens_per_s": [tokens / s for s in seconds[c.name]],
            "ours_against_it": ratios(seconds[c.name], seconds[ours.name]),
            "of_matmul_peak": flops_per_token(cfg)
            * tokens
            / statistics.median(seconds[c.name])
            / peaks[c.setup.precision],
            "matmul_flops": peaks[c.setup.precision],
            "peak_bytes": c.peak_bytes,
            "first_step_s": c.first_step_s,
            "loss_difference": largest_difference(pairs),
        }
        for c, pairs in zip(contestants, gate, strict=True)
    ]


def show(rows: list[dict[str, Any]], asked: argparse.Namespace, model: dict[str, Any]) -> None:
    """Print the table."""
    machine = f"{describe_device(local_device())}, torch {torch.__version__}"
    print(f"\n{asked.shape}, {asked.precision}, {machine}, {asked.rounds} rounds of {asked.steps} steps\n")
    print(
        "| | tokens/s | gptscale against it | of the matrix product peak | peak memory | first step | loss differs by |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        speed = row["tokens_per_s"]
        median, least, most = row["ours_against_it"]
        print(
            f"| {row['name']} | {statistics.median(speed):,.0f} ({min(speed):,.0f} to {max(speed):,.0f}) "
            f"| {median:.2f} ({least:.2f} to {most:.2f}) | {row['of_matmul_peak']:.2f} "
            f"| {row['peak_bytes'] / 1e9:.2f} GB ({row['peak_bytes'] / rows[0]['peak_bytes']:.2f} of ours) "
            f"| {row['first_step_s']:.0f} s | {row['loss_difference']:.4f} |"
        )


if __name__ == "__main__":
    raise SystemExit(told(main))
