"""Which parameter gets which treatment, and Muon against its formula."""

import pytest
import torch

from gptscale.config.schema import ModelConfig, OptimizerConfig
from gptscale.model.gpt import GPTModel
from gptscale.runtime import muon
from gptscale.runtime.muon import Muon
from gptscale.training.optimizer import build_optimizer

CPU = torch.device("cpu")


@pytest.fixture
def model() -> GPTModel:
    return GPTModel(ModelConfig(vocab_size=64, context_length=8, emb_dim=24, n_heads=2, n_layers=1), seed=1)


def names(model: GPTModel, group: dict[str, list[torch.Tensor]]) -> set[str]:
    return {name for name, p in model.named_parameters() if any(p is q for q in group["params"])}


def test_only_matrices_decay(model: GPTModel) -> None:
    decayed, free = build_optimizer(model, OptimizerConfig(weight_decay=0.1), CPU).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    assert {p.dim() for p in decayed["params"]} == {2}
    assert {p.dim() for p in free["params"]} == {1}
    assert len(decayed["params"]) + len(free["params"]) == len(list(model.parameters()))


def test_adamw_moves_by_the_decays_of_its_moments_and_by_eps() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    optim = OptimizerConfig(beta1=0.7, beta2=0.6, eps=1.0, lr_peak=0.1, weight_decay=0.0)
    optimizer, moved = build_optimizer(model, optim, CPU), []
    for gradient in (1.0, 3.0):
        before = model.weight.item()
        model.weight.grad = torch.tensor([[gradient]])
        optimizer.step()
        moved.append(model.weight.item() - before)
    # First both moments are 1 without their bias: -0.1 * 1 / (1 + 1). Then the first is (0.7 * 0.3 * 1 + 0.3 * 3) / 0.51
    # = 2.176471 and the second (0.6 * 0.4 * 1 + 0.4 * 9) / 0.64 = 6: -0.1 * 2.176471 / (2.449490 + 1).
    assert moved == pytest.approx([-0.05, -0.0630954], abs=1e-6)


def test_muon_gets_the_matrices_of_the_blocks_and_adamw_the_rest(model: GPTModel) -> None:
    matrices, decayed, free = build_optimizer(model, OptimizerConfig(name="muon"), CPU).param_groups
    blocks = {"att.qkv", "att.out_proj", "ff.fc", "ff.out_proj"}
    assert names(model, matrices) == {f"blocks.0.{layer}.weight" for layer in blocks}
    assert names(model, decayed) == {"tok_emb.weight", "pos_emb.weight"}
    assert all(name.endswith("bias") or "norm" in name for name in names(model, free))


def orthogonalized(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest matrix with all singular values one."""
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    return u @ v


def test_a_muon_step_moves_along_the_orthogonalized_momentum(model: GPTModel) -> None:
    optimizer = build_optimizer(model, OptimizerConfig(name="muon", lr_peak=0.01, weight_decay=0.1), CPU)
    weight = model.blocks[0].ff.fc.weight  # (96, 24)
    before = weight.detach().clone()
    generator = torch.Generator().manual_seed(3)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)
    grad = weight.grad.clone()
    optimizer.step()
    # First step: the momentum is a multiple of the gradient. The update has rms 0.2, times lr.
    expected = before * (1 - 0.01 * 0.1) - 0.01 * 0.2 * 96**0.5 * orthogonalized(grad)
    moved, wanted = weight.detach() - before, expected - before
    cosine = torch.nn.functional.cosine_similarity(moved.flatten(), wanted.flatten(), dim=0)
    assert float(cosine) > 0.97  # Newton-Schulz leaves singular values between about 0.7 and 1.2
    assert float(moved.norm() / wanted.norm()) == pytest.approx(0.85, abs=0.15)
    assert float(optimizer.state[model.tok_emb.weight]["step"]) == 1
    assert "momentum_buffer" in optimizer.state[weight]


@pytest.mark.parametrize("has_bf16", [True, False])
def test_muon_has_the_configs_momentum_and_decays_by_its_rate(
    has_bf16: bool, model: GPTModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(muon, "computes_bf16", lambda device: has_bf16)
    optim = OptimizerConfig(name="muon", lr_peak=0.1, weight_decay=0.3, momentum=0.7)
    optimizer = build_optimizer(model, optim, CPU)
    assert optimizer.param_groups[0]["momentum"] == 0.7
    weight = model.blocks[0].ff.fc.weight
    before = weight.detach().clone()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.allclose(weight, before * 0.97)  # 1 - 0.1 * 0.3, and no direction


@pytest.mark.parametrize(("shape", "stacked"), [((96, 24), 1), ((24, 96), 1), ((24, 24), 1), ((72, 24), 3)])
def test_in_fp32_muon_bends_the_singular_values_by_its_polynomial(
    shape: tuple[int, int], stacked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(muon, "computes_bf16", lambda device: False)
    torch.manual_seed(5)
    weight = torch.nn.Parameter(torch.randn(shape))
    settings = {"lr": 0.1, "weight_decay": 0.1, "momentum": 0.9, "adjust_lr_fn": "match_rms_adamw"}
    optimizer = Muon([weight], **settings)
    largest = max(shape[0] // stacked, shape[1])
    wanted, momentum = weight.detach().double(), torch.zeros(shape, dtype=torch.float64)
    for _ in range(3):
        weight.grad = torch.randn(shape)
        grad = weight.grad.double()
        momentum = 0.9 * momentum + 0.1 * grad
        directions = [bent(part) for part in (0.9 * momentum + 0.1 * grad).chunk(stacked)]
        wanted = wanted * (1 - 0.1 * 0.1) - 0.1 * 0.2 * largest**0.5 * torch.cat(directions)
        optimizer.step()
    assert torch.allclose(weight.detach().double(), wanted, atol=1e-5)


def bent(matrix: torch.Tensor) -> torch.Tensor:
    """Five times a s + b s^3 + c s^5 of each singular value s, in float64 (Jordan et al. 2024)."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    s = s / s.square().sum().sqrt()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u @ torch.diag(s) @ v


@pytest.mark.parametrize("has_bf16", [True, False])
def test_muon_goes_where_torchs_does_bit_for_bit_where_the_device_has_bf16(
    has_bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(muon, "computes_bf16", lambda device: has_bf16)
    torch.manual_seed(6)
    ours, theirs = (torch.nn.Parameter(torch.ones(48, 32)) for _ in range(2))
    optimizers = Muon([ours], lr=0.1), torch.optim.Muon([theirs], lr=0.1)
    for _ in range(2):
        ours.grad = theirs.grad = torch.randn(48, 32)
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(ours, theirs) == has_bf16
    assert torch.allclose(ours, theirs, atol=0.02 * float((ours - 1).detach().abs().max()))  # bf16 has 8 bits


@pytest.mark.parametrize("has_bf16", [True, False])
def test_queries_keys_and_values_go_as_three_matrices_of_their_own(
    model: GPTModel, has_bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(muon, "computes_bf16", lambda device: has_bf16)
    optimizer = build_optimizer(model, OptimizerConfig(name="muon", lr_peak=0.01), CPU)
    qkv = model.blocks[0].att.qkv.weight
    alone = [torch.nn.Parameter(part.clone()) for part in qkv.detach().chunk(3)]
    theirs = Muon(alone, lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for _ in range(2):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        for part, grad in zip(alone, qkv.grad.chunk(3), strict=True):
            part.grad = grad.clone()
        optimizer.step()
        theirs.step()
    assert torch.equal(qkv, torch.cat(alone))


def test_no_other_matrix_of_a_block_is_taken_for_three() -> None:
    for preset in ("124M", "350M", "774M", "1558M"):
        with torch.device("meta"):
            block = GPTModel(ModelConfig(preset=preset, n_layers=1), seed=None).blocks[0]
        matrices = {name: p.shape for name, p in block.named_parameters() if p.dim() == 2}
        assert {name for name, shape in matrices.items() if muon._stacked(shape) == 3} == {"att.qkv.weight"}


def test_a_rate_set_from_outside_reaches_both_after_a_state_was_loaded(model: GPTModel) -> None:
    optimizer = build_optimizer(model, OptimizerConfig(name="muon"), CPU)
    optimizer.load_state_dict(optimizer.state_dict())  # as Accelerate's prepare does
    before = [p.detach().clone() for p in model.parameters()]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert len(optimizer.state) == len(before)


def test_a_gradient_that_is_not_finite_moves_nothing_under_muon(model: GPTModel) -> None:
    optimizer = build_optimizer(model, OptimizerConfig(name="muon"), CPU)
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.full_like(p, torch.nan)
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert not optimizer.state
