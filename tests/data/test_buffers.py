"""Memory is lent again when nothing refers to it any more, and never before."""

import gc

import torch

from gptscale.data.buffers import Buffers


def test_memory_that_nobody_refers_to_is_lent_again() -> None:
    buffers = Buffers()
    places = set()
    for _ in range(20):
        tensor = buffers.take(3, 4)
        assert (tensor.shape, tensor.dtype) == ((3, 4), torch.int64)
        places.add(tensor.data_ptr())
        del tensor
    assert len(places) == 1


def test_memory_of_which_any_view_is_left_is_not_lent() -> None:
    buffers = Buffers()
    row = buffers.take(3, 4).fill_(7)[1]  # the tensor itself is gone, its memory is not
    array = buffers.take(3, 4).fill_(8).numpy()
    for _ in range(5):
        buffers.take(3, 4).fill_(0)
    gc.collect()
    assert row.tolist() == [7] * 4
    assert array.tolist() == [[8] * 4] * 3


def test_what_a_backward_pass_still_needs_is_not_lent() -> None:
    buffers = Buffers()
    weight = torch.zeros(10, 2, requires_grad=True)
    loss = torch.nn.functional.embedding(buffers.take(3).fill_(4), weight).sum()
    buffers.take(3).fill_(9)
    loss.backward()
    assert weight.grad is not None
    assert weight.grad[:, 0].nonzero().tolist() == [[4]]


def test_another_shape_has_memory_of_its_own() -> None:
    buffers = Buffers()
    first = buffers.take(3, 4).fill_(1)
    del first
    other = buffers.take(4, 3).fill_(2)
    again = buffers.take(3, 4).fill_(1)
    assert other.eq(2).all()
    assert again.eq(1).all()
