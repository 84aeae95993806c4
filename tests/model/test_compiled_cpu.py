"""What is compiled for a CPU in place of torch's kernels, against these in float64."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile

from gptscale.config.schema import ModelConfig
from gptscale.model.compiled_cpu import _blocks, _sum, causal_attention, gelu
from gptscale.model.gpt import FeedForward, GPTModel

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler

ROUNDING = 2**-8
"""The distance of bf16 numbers at 1."""
MODEL = {"vocab_size": 101, "context_length": 160, "emb_dim": 64, "n_heads": 2, "n_layers": 1}


@pytest.fixture
def not_compiled() -> Iterator[None]:
    """Compute what would be compiled as it stands."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


def attention_and_gradient(qkv: Tensor, grad: Tensor, written_out: bool) -> tuple[Tensor, Tensor]:
    """What queries see, and what queries, keys and values get from a gradient, in float64."""
    leaf = qkv.clone().requires_grad_()
    if written_out:
        y = causal_attention(leaf)
    else:
        q, k, v = leaf.transpose(1, 3).unbind(2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
    y.backward(grad)
    assert leaf.grad is not None
    return y.detach().double(), leaf.grad.double()


@pytest.mark.parametrize("length", [1, 7, 128, 129, 300, 1_000])
@pytest.mark.usefixtures("not_compiled")
def test_attention_in_blocks_is_attention(length: int) -> None:
    torch.manual_seed(length)
    qkv = torch.randn(2, length, 3, 2, 16, dtype=torch.bfloat16)
    grad = torch.randn(2, length, 2, 16, dtype=torch.bfloat16)
    ours = attention_and_gradient(qkv, grad, written_out=True)
    exact = attention_and_gradient(qkv.double(), grad.double(), written_out=False)
    for mine, wanted in zip(ours, exact, strict=True):
        assert (mine - wanted).norm() < 2 * ROUNDING * wanted.norm()


@pytest.mark.parametrize(("length", "blocks"), [(1, 1), (129, 2), (512, 4), (513, 4), (1_001, 4), (2_047, 4)])
def test_no_length_has_more_blocks_than_a_compiler_has_patience_for(length: int, blocks: int) -> None:
    assert len(_blocks(torch.zeros(1, length, 1, 1))) == blocks


def test_what_blocks_add_up_to_is_rounded_once() -> None:
    parts = [torch.tensor([x]).bfloat16() for x in (256.0, 1.0, 1.0)]
    assert _sum(parts).tolist() == [258.0]  # in bf16 each 1 would be lost, since 256 and 258 are neighbours


@pytest.mark.usefixtures("not_compiled")
def test_a_position_gets_nothing_from_later_ones() -> None:
    qkv = torch.randn(1, 300, 3, 2, 16, dtype=torch.bfloat16)
    before = causal_attention(qkv)
    qkv[:, 200:] += 1
    after = causal_attention(qkv)
    assert torch.equal(before[:, :200], after[:, :200])
    assert not torch.equal(before[:, 200:], after[:, 200:])


@pytest.mark.usefixtures("not_compiled")
def test_attention_takes_scores_whose_exponentials_are_no_numbers() -> None:
    values = torch.randn(1, 300, 1, 16, dtype=torch.bfloat16)
    alike = torch.full_like(values, 30.0)  # scores of 30 * 30 * 16 / 4 = 3,600, where exp ends at 88
    qkv = torch.stack([alike, alike, values], 2).requires_grad_()
    seen = causal_attention(qkv)
    seen.sum().backward()
    means = values.double().cumsum(1) / torch.arange(1, 301).view(1, -1, 1, 1)  # all keys weigh the same
    assert (seen.detach().double() - means).norm() < 2 * ROUNDING * means.norm()
    assert qkv.grad is not None
    assert qkv.grad.isfinite().all()


def test_gelu_is_gelu_and_so_is_its_gradient() -> None:
    x = torch.linspace(-12, 12, 4_801)
    mine, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    gelu(mine).sum().backward()
    F.gelu(exact, approximate="tanh").sum().backward()
    assert mine.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(gelu(x).double(), F.gelu(x.double(), approximate="tanh"), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mine.grad.double(), exact.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("form", "taken"), [("tanh", True), ("erf", False)])
def test_a_compiled_layer_takes_the_sigmoid_for_the_tanh_form(form: str, taken: bool) -> None:
    layer = torch.compile(FeedForward(ModelConfig(**MODEL, gelu=form)), backend="eager")  # calls what was traced
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as seen:
        layer(torch.ones(1, 1, 64))
    names = {event.key for event in seen.key_averages()}
    assert ("aten::sigmoid" in names, "aten::gelu" in names) == (taken, not taken)


@pytest.mark.parametrize(("drop_rate", "taken"), [(0.0, True), pytest.param(0.1, False, marks=pytest.mark.long)])
def test_a_compiled_model_takes_it_where_nothing_is_dropped(drop_rate: float, taken: bool) -> None:
    torch.manual_seed(0)
    model = GPTModel(ModelConfig(**MODEL, drop_rate=drop_rate), seed=1)
    tokens, targets = torch.randint(0, 101, (2, 2, 160))
    losses, grads, names = [], [], set()
    for _ in ("not compiled", "compiled"):
        model.zero_grad()
        with profile(activities=[ProfilerActivity.CPU], acc_events=True) as seen, torch.autocast("cpu", torch.bfloat16):
            loss = model(tokens, targets)
            loss.backward()
        names = {event.key for event in seen.key_averages()}
        losses.append(loss.item() / targets.numel())
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        model.compile(dynamic=False)
    assert ("gptscale::causal_attention" in names, "gptscale::causal_attention_backward" in names) == (taken, taken)
    if not drop_rate:
        assert abs(losses[0] - losses[1]) < 1e-3
        assert (grads[0] - grads[1]).norm() < 3 * ROUNDING * grads[0].norm()


def test_a_second_step_compiles_nothing() -> None:
    torch._dynamo.reset()
    counters.clear()
    model = GPTModel(ModelConfig(**MODEL, drop_rate=0.0), seed=1).bfloat16()
    compiled, tokens, graphs = torch.compile(model, dynamic=False), torch.arange(64)[None], []
    for _ in range(3):
        compiled(tokens, tokens).backward()
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 3  # the model, attention forward and backward, and the head
    assert graphs[1:] == graphs[:1] * 2
