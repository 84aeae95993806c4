"""Another DeepSpeed, or weights in another place, is refused."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from gptscale.errors import CheckpointError, ConfigError
from gptscale.runtime.loss_scale import LossScale
from gptscale.runtime.zero_fragments import TESTED_VERSIONS, check_deepspeed, check_links, zero_fragments


def under_zero_2(*, shifted_by: int = 0) -> tuple[nn.Module, SimpleNamespace]:
    """A model and what DeepSpeed would make of it on the only rank; its links may point to the wrong place."""
    model = nn.Linear(3, 2)
    flat = torch.cat([p.detach().flatten() for p in model.parameters()] + [torch.zeros(shifted_by)])
    offset = shifted_by
    for p in model.parameters():
        p._hp_mapping = SimpleNamespace(  # type: ignore[attr-defined]
            param_group_index=0,
            lp_fragment_address=SimpleNamespace(start=0, numel=p.numel()),
            hp_fragment_address=SimpleNamespace(start=offset, numel=p.numel()),
        )
        offset += p.numel()
    optimizer = SimpleNamespace(param_groups=[{"params": [flat]}], state={})
    names = {"_lazy_init_hp_params_optimizer_state": None, "update_lp_params": None}
    return model, SimpleNamespace(optimizer=optimizer, **names)


def test_the_deepspeed_that_was_tested_is_installed_and_fits() -> None:
    from importlib.metadata import version

    assert version("deepspeed") in TESTED_VERSIONS
    check_deepspeed(*under_zero_2(), stage=2)


def test_a_deepspeed_without_the_names_is_refused_in_one_line() -> None:
    model, zero = under_zero_2()
    del zero.update_lp_params
    with pytest.raises(
        ConfigError, match=r"deepspeed .* another way than 0.19.8, .* no update_lp_params\); install"
    ) as e:
        check_deepspeed(model, zero, stage=2)
    assert "\n" not in str(e.value)
    with pytest.raises(ConfigError, match=r"it has no fp32_partitioned_groups_flat, fp16_groups, grad_position"):
        check_deepspeed(model, zero, stage=3)


def test_a_deepspeed_that_keeps_the_weights_elsewhere_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"weight: DeepSpeed's fp32 weights are not the model's"):
        check_deepspeed(*under_zero_2(shifted_by=1), stage=2)


def test_a_save_that_would_mix_up_the_names_is_refused_and_names_the_parameter() -> None:
    model, zero = under_zero_2()
    fragments = list(zero_fragments(model, zero, 2))
    fragments[1].tensors["weight"].add_(1)
    with pytest.raises(
        CheckpointError, match=r"^bias: DeepSpeed's fp32 weights are not the model's; nothing was saved"
    ):
        check_links(fragments, model, 2)


@pytest.mark.filterwarnings("ignore")
def test_what_zero_gives_to_a_checkpoint_was_compared_with_the_model() -> None:
    from gptscale.runtime.zero import ZeroEngine  # takes seconds

    model, zero = under_zero_2()
    engine = ZeroEngine.__new__(ZeroEngine)
    vars(engine).update(bare_model=model, _zero=zero, _stage=2)
    assert [fragment.name for fragment in engine.owned_fragments()] == ["weight", "bias"]
    zero.optimizer.param_groups[0]["params"][0][-1] += 1
    with pytest.raises(CheckpointError, match=r"^bias: .* are not the model's; nothing was saved"):
        engine.owned_fragments()


@pytest.mark.filterwarnings("ignore")
def test_zero_is_told_the_loss_scale_that_a_run_goes_on_with() -> None:
    from gptscale.runtime.zero import ZeroEngine

    told: list[float] = []
    engine = ZeroEngine.__new__(ZeroEngine)
    zero = SimpleNamespace(override_loss_scale=told.append)
    vars(engine).update(_zero=zero, _loss_scale=LossScale(torch.device("cpu")))
    engine.load_scaler_state({"scale": 1024.0, "steps": 3})
    assert told == [1024.0]  # and not what a run begins with, with which the first step could overflow


@pytest.mark.filterwarnings("ignore")
def test_zero_is_told_the_loss_scale_that_an_overflow_has_halved() -> None:
    from gptscale.runtime.zero import ZeroEngine

    told: list[float] = []
    model = SimpleNamespace(step=lambda: None, get_global_grad_norm=lambda: float("inf"))
    cpu = torch.device("cpu")
    engine = ZeroEngine.__new__(ZeroEngine)
    zero = SimpleNamespace(override_loss_scale=told.append)
    vars(engine).update(model=model, device=cpu, _zero=zero, _stage=3, _loss_scale=LossScale(cpu))
    engine.update(None)
    engine.update(None)
    assert told == [2.0**15, 2.0**14]  # else it would overflow for ever
