"""Another DeepSpeed, or weights in another place, is refused."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from gptscale.errors import CheckpointError, ConfigError
from gptscale.runtime.engine import EngineSettings
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
    names = dict.fromkeys(("_lazy_init_hp_params_optimizer_state", "update_lp_params", "dp_process_group"))
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


def test_a_deepspeed_without_links_is_refused() -> None:
    model, zero = under_zero_2()
    del model.weight._hp_mapping
    with pytest.raises(ConfigError, match=r"no attribute '_hp_mapping'\); install"):
        check_deepspeed(model, zero, stage=2)


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
def test_what_was_loaded_is_compared_with_the_model_and_let_go() -> None:
    from gptscale.runtime.zero import ZeroEngine

    model, zero = under_zero_2()
    engine = ZeroEngine.__new__(ZeroEngine)
    vars(engine).update(bare_model=model, _zero=zero, _stage=2)
    zero.update_lp_params = lambda: None
    engine.weight_fragments()
    engine.loaded()
    assert engine._wanted == []  # copies, where the state is on NVMe
    zero.optimizer.param_groups[0]["params"][0][-1] += 1
    with pytest.raises(ConfigError, match=r"bias: .* are not the model's.*; install deepspeed=="):
        engine.loaded()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("accumulates", "shifted_by", "message"),
    [
        (1, 0, "DeepSpeed accumulates 1 micro-batches, not 4; leave gradient_accumulation_steps out of the launch"),
        (4, 1, "weight: DeepSpeed's fp32 weights are not the model's"),
    ],
)
def test_zero_does_not_train_what_deepspeed_understood_otherwise(
    monkeypatch: pytest.MonkeyPatch, accumulates: int, shifted_by: int, message: str
) -> None:
    from gptscale.runtime.zero import Engine, ZeroEngine

    model, zero = under_zero_2(shifted_by=shifted_by)
    engine = ZeroEngine.__new__(ZeroEngine)
    wrapped = SimpleNamespace(optimizer=zero, gradient_accumulation_steps=lambda: accumulates)
    vars(engine).update(bare_model=model, model=wrapped, _stage=2, _loss_scale=None)
    vars(engine).update(settings=EngineSettings("fp32", accumulation=4))
    monkeypatch.setattr(Engine, "prepare", lambda *_, **__: None)
    monkeypatch.setattr("gptscale.runtime.zero.c10d._set_pg_timeout", lambda *_: None)
    with pytest.raises(ConfigError, match=message):
        engine.prepare(model, torch.optim.AdamW(model.parameters()), compile_model=False)


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
    engine.update(0.5)
    assert zero.clip_grad == 0.5
    engine.update(None)
    assert zero.clip_grad == 0.0  # DeepSpeed's word for no clipping
    assert told == [2.0**15, 2.0**14]  # else it would overflow for ever
