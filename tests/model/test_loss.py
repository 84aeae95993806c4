"""The head's loss in 16 bits, in chunks and compiled, against cross-entropy in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from gptscale.model.loss import IGNORE, summed_cross_entropy
from gptscale.model.size import rows_per_chunk
from tests.planning.measure import peak_bytes

ROUNDING = 2**-8
"""The distance of bf16 numbers at 1."""
TOKENS, VOCABULARY, PADDED, WIDTH = 72, 101, 128, 48


def inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, head weights and targets, of which some do not count."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator).bfloat16()
    weight = torch.randn(PADDED, WIDTH, generator=generator).mul_(0.3).bfloat16()
    targets = torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)
    targets[::5] = IGNORE
    return hidden.requires_grad_(), weight.to(dtype).requires_grad_(), targets


def exact(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, and its gradients by hidden states and weights."""
    x, w = (t.detach().double().requires_grad_() for t in (hidden, weight))
    loss = F.cross_entropy((x @ w.T)[:, :VOCABULARY], targets, reduction="sum")
    return loss.detach(), *torch.autograd.grad(loss, (x, w))


@pytest.mark.parametrize("rows", [TOKENS, 30, 7])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=["autocast", "bf16-weights"])
def test_in_16_bits_it_is_cross_entropy(monkeypatch: pytest.MonkeyPatch, weights: torch.dtype, rows: int) -> None:
    monkeypatch.setattr("gptscale.model.size.LOGITS_PER_CHUNK", rows * PADDED)
    hidden, weight, targets = inputs(weights)
    with torch.autocast("cpu", torch.bfloat16, enabled=weights == torch.float32):
        loss = summed_cross_entropy(hidden, weight, targets, VOCABULARY)
    grads = torch.autograd.grad(loss * 0.5, (hidden, weight))
    wanted, *wanted_grads = exact(hidden, weight, targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(wanted.item(), rel=ROUNDING)
    assert [g.dtype for g in grads] == [torch.bfloat16, weights]
    for mine, whole in zip(grads, wanted_grads, strict=True):
        assert (mine.double() - whole / 2).norm() < 2 * ROUNDING * (whole / 2).norm()
    assert torch.equal(grads[1][VOCABULARY:], torch.zeros(PADDED - VOCABULARY, WIDTH, dtype=weights))


@pytest.mark.parametrize("rows", [TOKENS, 7])
def test_a_factor_that_no_number_of_fp16_is_scales_the_gradients(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """As the first loss scale is, 65,536; and one backward pass leaves to another what it needs."""
    monkeypatch.setattr("gptscale.model.size.LOGITS_PER_CHUNK", rows * PADDED)
    hidden, weight, targets = inputs(torch.float32)
    with torch.autocast("cpu", torch.float16):
        loss = summed_cross_entropy(hidden, weight * 2**-6, targets, VOCABULARY)
    found = [torch.autograd.grad(loss * factor, (hidden, weight), retain_graph=True) for factor in (2.0**16, 2.0**6)]
    for scaled, by_less in zip(*found, strict=True):
        assert scaled.any()
        assert torch.equal(scaled, by_less * 2**10)  # powers of two round nothing


def test_without_gradients_it_takes_none() -> None:
    hidden, weight, targets = inputs(torch.bfloat16)
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        loss = summed_cross_entropy(hidden, weight, targets, VOCABULARY)
    assert loss.item() == pytest.approx(exact(hidden, weight, targets)[0].item(), rel=ROUNDING)
    assert counted.get_total_flops() == 2 * TOKENS * PADDED * WIDTH  # the logits


@pytest.mark.parametrize(
    ("tokens", "most", "rows"),
    [(16_384, 2_668, 2_048), (2_048, 2_668, 2_048), (8_192, 2_668, 2_048), (97, 30, 25), (5, 1, 1), (0, 9, 1)],
)
def test_chunks_have_one_size_where_some_divide(
    monkeypatch: pytest.MonkeyPatch, tokens: int, most: int, rows: int
) -> None:
    monkeypatch.setattr("gptscale.model.size.LOGITS_PER_CHUNK", most * PADDED)
    assert rows_per_chunk(tokens, PADDED) == rows


def test_in_fp16_the_weights_gradient_stays_below_the_largest_number() -> None:
    """Of one token behind inputs that share a component, more rows would add up to more than 65,504."""
    assert rows_per_chunk(2**16, PADDED) == 2**16
    hidden = torch.full((2**16, 8), 2.0).requires_grad_()
    weight = torch.zeros(PADDED, 8).requires_grad_()
    targets = torch.full((2**16,), 3)
    with torch.autocast("cpu", torch.float16):
        loss = summed_cross_entropy(hidden, weight, targets, VOCABULARY)
    loss.mul(2.0**-16).backward()
    assert weight.grad is not None
    assert weight.grad.isfinite().all()
    assert weight.grad[3].tolist() == pytest.approx(8 * [-2 * (1 - 1 / VOCABULARY)], rel=1e-2)


@pytest.mark.skipif(torch.__version__ < "2.11", reason="torch 2.10 compiles a second copy of the logits")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
@pytest.mark.parametrize(("chunks", "most"), [(1, 1.5), (8, 1.6)])  # the second has a sum of the weights' gradients too
def test_compiled_it_takes_one_chunk_of_logits_and_writes_the_gradient_over_it(
    monkeypatch: pytest.MonkeyPatch, chunks: int, most: float
) -> None:
    rows, padded = 512, 8_192
    monkeypatch.setattr("gptscale.model.size.LOGITS_PER_CHUNK", rows * padded)
    hidden = torch.randn(chunks * rows, WIDTH).bfloat16().requires_grad_()
    weight = torch.randn(padded, WIDTH).mul_(0.1).bfloat16().requires_grad_()
    targets = torch.randint(0, padded - 50, (len(hidden),))
    step = torch.compile(lambda: summed_cross_entropy(hidden, weight, targets, padded - 50), dynamic=False)
    step().backward()
    logits_bytes = rows * padded * 2
    assert logits_bytes <= peak_bytes(lambda: step().backward()) < most * logits_bytes


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=["autocast", "bf16-weights"])
def test_compiled_chunks_give_what_they_give_without(monkeypatch: pytest.MonkeyPatch, weights: torch.dtype) -> None:
    monkeypatch.setattr("gptscale.model.size.LOGITS_PER_CHUNK", 30 * PADDED)  # chunks of 24
    hidden, weight, targets = inputs(weights)
    compiled = torch.compile(summed_cross_entropy, dynamic=False)
    with torch.autocast("cpu", torch.bfloat16, enabled=weights == torch.float32):
        losses = [loss(hidden, weight, targets, VOCABULARY) for loss in (compiled, summed_cross_entropy)]
        with torch.no_grad():
            losses.append(compiled(hidden, weight, targets, VOCABULARY))
    mine, plain = (torch.autograd.grad(loss, (hidden, weight)) for loss in losses[:2])
    assert [loss.item() for loss in losses] == pytest.approx(3 * [losses[1].item()], rel=1e-6)
    for ours, its in zip(mine, plain, strict=True):
        assert ours.dtype == its.dtype
        assert (ours.double() - its.double()).norm() < ROUNDING * its.double().norm()
