import pytest

from gptscale.config.schema import OptimizerConfig
from gptscale.training.schedule import lr_at

OPTIM = OptimizerConfig(lr_peak=1.0, lr_floor=0.2, warmup_steps=4)


def test_warmup_rises_in_a_line_from_above_zero_to_the_peak() -> None:
    assert [lr_at(s, OPTIM, 105) for s in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_the_cosine_is_half_way_down_in_the_middle_and_at_the_floor_at_the_last_step() -> None:
    # From step 4 to step 104: the middle is step 54, where the rate is (1.0 + 0.2) / 2; at a
    # quarter it is 0.2 + 0.8 * (1 + cos 45 deg) / 2 = 0.882843.
    assert lr_at(54, OPTIM, 105) == pytest.approx(0.6)
    assert lr_at(29, OPTIM, 105) == pytest.approx(0.882843, abs=1e-6)
    assert lr_at(104, OPTIM, 105) == pytest.approx(0.2)
    assert lr_at(500, OPTIM, 105) == pytest.approx(0.2)


def test_equal_peak_and_floor_give_a_constant_rate() -> None:
    optim = OptimizerConfig(lr_peak=4e-4, lr_floor=4e-4)
    assert {lr_at(s, optim, 90) for s in range(90)} == {4e-4}


def test_a_run_of_one_step_uses_the_peak() -> None:
    assert lr_at(0, OptimizerConfig(lr_peak=1.0, lr_floor=0.0), 1) == 1.0


def test_a_run_made_longer_stays_at_the_floor_if_the_decay_has_its_own_length() -> None:
    optim = OPTIM.model_copy(update={"decay_steps": 105})
    assert [lr_at(s, optim, 1000) for s in (0, 54, 104, 105, 999)] == pytest.approx([0.2, 0.6, 0.2, 0.2, 0.2])
