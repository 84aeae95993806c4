import math

import pytest

from gptscale.tracking.lines import compact, duration, evaluation_line, sample_line, size, train_line

TRAIN = {
    "step": 100,
    "train/loss": 3.2142,
    "train/perplexity": 24.88,
    "train/lr": 6e-4,
    "train/tokens_per_s": 12_345.0,
    "train/mfu": 0.4123,
}


def test_a_training_record_is_one_line() -> None:
    assert train_line(TRAIN, 2000, left_s=192.0) == (
        "step 100/2000  loss 3.214  ppl 24.9  lr 6.00e-04  12.3k tok/s  mfu 41.2%  left 0:03:12"
    )


def test_a_training_line_leaves_out_what_the_record_lacks() -> None:
    assert train_line({"step": 5, "train/loss": math.nan}, 10, left_s=None) == "step 5/10  loss nan"


def test_an_evaluation_record_is_one_line() -> None:
    record = {
        "step": 100,
        "val/loss": 3.3,
        "val/perplexity": 27.11,
        "val/bits_per_byte": 1.0314,
        "eval_train/loss": 3.2,
        "eval_train/perplexity": 24.53,
    }
    assert evaluation_line(record, 2000) == (
        "step 100/2000  validation  loss 3.300  ppl 27.1  bits/byte 1.031  training windows  loss 3.200  ppl 24.5"
    )


def test_a_sample_cannot_steer_the_terminal() -> None:
    assert sample_line(7, "\n", "red \x1b[31m\nnext") == r"step 7  sample  '\n' -> 'red \x1b[31m\nnext'"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.25, "0.25"),
        (950, "950"),
        (12_345, "12.3k"),
        (999_499, "999k"),
        (999_600, "1M"),
        (524_288, "524k"),
        (1_500_000, "1.5M"),
        (1e10, "10B"),
        (3e12, "3T"),
        (9.994e14, "999T"),
        (9.996e14, "1e+15"),
        (1.0142e304, "1.01e+304"),
        (math.inf, "inf"),
    ],
)
def test_counts_are_written_in_three_digits(value: float, text: str) -> None:
    assert compact(value) == text


@pytest.mark.parametrize(("count", "text"), [(950, "950B"), (450_000, "450kB"), (1_493_000_000, "1.49GB")])
def test_bytes_are_written_in_three_digits(count: float, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (59.6, "0:01:00"), (3_661, "1:01:01"), (183_845, "51:04:05")]
)
def test_times_are_hours_minutes_and_seconds(seconds: float, text: str) -> None:
    assert duration(seconds) == text
