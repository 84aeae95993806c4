"""fp16's loss scale against torch.amp.GradScaler."""

import pytest
import torch

from gptscale.runtime.loss_scale import LossScale

CPU = torch.device("cpu")


def test_the_scale_moves_as_torchs_own_does() -> None:
    theirs, ours = torch.amp.GradScaler("cpu"), LossScale(CPU)
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    for step in range(4100):
        slope = torch.inf if step in (3, 4, 2500) else 1.0
        theirs.scale((weight * slope).sum()).backward()
        theirs.step(optimizer)
        theirs.update()
        ours.update(weight.grad.norm())  # type: ignore[union-attr]
        optimizer.zero_grad()
        assert float(ours.scale) == theirs.get_scale(), step
    # halved twice, doubled after 2000 good steps, halved; 1599 good steps do not double it again
    assert ours.state() == {"scale": 2.0**14, "steps": 1599}


def test_gradients_are_divided_by_the_scale() -> None:
    scale = LossScale(CPU)
    gradients = [torch.tensor([2.0**16, 2.0**17]), torch.tensor([[3 * 2.0**16]])]
    scale.unscale(gradients)
    assert [g.flatten().tolist() for g in gradients] == [[1.0, 2.0], [3.0]]


def test_a_saved_scale_goes_on_where_it_was() -> None:
    scale = LossScale(CPU)
    scale.load({"scale": 8.0, "steps": 1999})
    scale.update(torch.tensor(1.0))
    assert scale.state() == {"scale": pytest.approx(16.0), "steps": 0}
