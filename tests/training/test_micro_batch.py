"""micro_batch_sequences: auto."""

from typing import Any

import pytest

from gptscale.config.load import load_config, parse_config
from gptscale.config.schema import Config
from gptscale.errors import TrainingError
from gptscale.model.gpt import GPTModel
from gptscale.training import micro_batch
from gptscale.training.micro_batch import with_micro_batch
from gptscale.training.run import train


def auto(values: dict[str, Any], **train: Any) -> Config:
    return parse_config({**values, "train": {**values["train"], "micro_batch_sequences": "auto", **train}})


def with_memory(patch: pytest.MonkeyPatch, free: float) -> None:
    patch.setattr(micro_batch, "free_bytes", lambda device: free / micro_batch.SAFE_SHARE)


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """One block of memory before the first sequence, and one for each."""
    monkeypatch.setattr(micro_batch, "_fixed_bytes", lambda cfg, parameters: 1000)
    monkeypatch.setattr(micro_batch, "_activation_bytes", lambda model, cfg, sequences: 7 + 100 * sequences)


@pytest.mark.usefixtures("costs")
@pytest.mark.parametrize(
    ("free", "number"), [(1100, 1), (1299, 2), (1399, 2), (1400, 4), (1799, 4), (1800, 8), (9999, 8)]
)
def test_the_largest_power_of_two_that_fits_and_a_step_can_use(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, free: int, number: int
) -> None:
    with_memory(monkeypatch, free)  # a step has 8 sequences
    assert with_micro_batch(auto(values)).train.micro_batch_sequences == number


@pytest.mark.usefixtures("costs")
def test_a_model_that_does_not_fit_is_told(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with_memory(monkeypatch, 1099)
    with pytest.raises(TrainingError, match=r"not even one sequence fits: .* set train.activation_checkpointing=true"):
        with_micro_batch(auto(values))


@pytest.mark.usefixtures("costs")
def test_a_run_keeps_the_number_of_its_first_start(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with_memory(monkeypatch, 1450)
    cfg = auto(values, steps=3)
    assert train(cfg)
    assert load_config(cfg.run.dir / "config.yaml").train.micro_batch_sequences == 4
    with_memory(monkeypatch, 9999)
    assert with_micro_batch(cfg).train.micro_batch_sequences == 4


def test_a_given_number_is_left_alone(values: dict[str, Any]) -> None:
    assert with_micro_batch(parse_config(values)).train.micro_batch_sequences == 4


def test_activations_grow_with_the_sequences_and_shrink_when_recomputed(values: dict[str, Any]) -> None:
    cfg = auto(values)
    model = GPTModel(cfg.model.model_copy(update={"n_layers": 8}), seed=1)
    two, four, eight = (micro_batch._activation_bytes(model, cfg, n) for n in (2, 4, 8))
    assert eight - four == pytest.approx(2 * (four - two), rel=0.01)
    # At least the input of each of 8 blocks and the 4 times wider middle of each: 8 * 32 * (32 + 128) floats.
    assert four - two > 2 * 8 * 32 * 160 * 4
    model.recompute = True
    recomputed = [micro_batch._activation_bytes(model, cfg, n) for n in (4, 8)]
    assert recomputed[1] - recomputed[0] < 0.6 * (eight - four)
