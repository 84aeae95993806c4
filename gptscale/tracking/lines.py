"""Records and samples as lines of text."""

import math

from gptscale.tracking.tracker import Record


def train_line(record: Record, total_steps: int, left_s: float | None) -> str:
    """Say in one line how training stands; what the record lacks is left out."""
    parts = [f"step {record['step']:.0f}/{total_steps}", *_loss_parts(record, "train")]
    if "train/lr" in record:
        parts.append(f"lr {record['train/lr']:.2e}")
    if "train/tokens_per_s" in record:
        parts.append(f"{compact(record['train/tokens_per_s'])} tok/s")
    if "train/mfu" in record:
        parts.append(f"mfu {record['train/mfu']:.1%}")
    if left_s is not None:
        parts.append(f"left {duration(left_s)}")
    return "  ".join(parts)


def evaluation_line(record: Record, total_steps: int) -> str:
    """Say in one line what an evaluation found, on validation and on the fixed training windows."""
    parts = [f"step {record['step']:.0f}/{total_steps}"]
    if "val/loss" in record:
        parts += ["validation", *_loss_parts(record, "val")]
    if "val/bits_per_byte" in record:
        parts.append(f"bits/byte {record['val/bits_per_byte']:.3f}")
    for name in evaluated_sets(record):
        parts += [name, *_loss_parts(record, f"val/{name}")]
    if "eval_train/loss" in record:
        parts += ["training windows", *_loss_parts(record, "eval_train")]
    return "  ".join(parts)


def evaluated_sets(record: Record) -> list[str]:
    """The names in eval.sets, or of a mixture's corpora, that a record has a loss for."""
    return [key[4:-5] for key in record if key.startswith("val/") and key.endswith("/loss") and key != "val/loss"]


def checkpoint_line(record: Record, total_steps: int) -> str:
    """Say in one line that a checkpoint is safe, and what it cost."""
    return (
        f"step {record['checkpoint/step']:.0f}/{total_steps}  checkpoint  {size(record['checkpoint/bytes'])}  "
        f"stalled {record['checkpoint/stall_s']:.2g} s, safe after {record['checkpoint/durable_s']:.2g} s"
    )


def health_line(record: Record, total_steps: int) -> str:
    """Say in one line what went wrong since the last record."""
    parts = [f"step {record['step']:.0f}/{total_steps}"]
    if record.get("health/skipped_steps"):
        parts.append(f"{record['health/skipped_steps']:.0f} steps skipped, whose gradients were not finite")
    if "health/spike_step" in record:
        parts.append(
            f"loss spike {record['health/spike_loss']:.3f} at step {record['health/spike_step']:.0f}, "
            f"{record['health/spike_z']:.1f} deviations above the median"
        )
    if "health/skipped_samples" in record:
        parts.append(f"rolled back, {record['health/skipped_samples']:.0f} samples left out")
    return "  ".join(parts)


def sample_line(step: int, prompt: str, text: str) -> str:
    """Show a sample on one line, quoted, so that no character of it can steer the terminal."""
    return f"step {step}  sample  {prompt!r} -> {text!r}"


def compact(value: float) -> str:
    """Write a count in three digits: 950, 12.3k, 524k, 1.5M, 10B, 1.01e+304."""
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 999.5e12:
        return f"{value:.3g}"
    for least, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * least:  # what rounds to it
            return f"{_three_digits(value / least)}{unit}"
    return _three_digits(value)


def size(count: float) -> str:
    """Write a number of bytes in three digits: 950B, 12.3kB, 1.49GB."""
    return compact(count).replace("B", "G") + "B"


def duration(seconds: float) -> str:
    """Write a time as hours:minutes:seconds."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}"


def _loss_parts(record: Record, split: str) -> list[str]:
    parts = [f"loss {record[f'{split}/loss']:.3f}"] if f"{split}/loss" in record else []
    if f"{split}/perplexity" in record:
        value = record[f"{split}/perplexity"]
        parts.append(f"ppl {value:.1f}" if value < 1000 else f"ppl {compact(value)}")
    return parts


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
