"""A rank's copy of its state lies in blocks of host memory, which are kept."""

import pytest
import torch

from gptscale.checkpoint import snapshot
from gptscale.checkpoint.snapshot import Snapshot
from gptscale.runtime.fragments import Fragment


def fragment(name: str, elements: int, value: float) -> Fragment:
    tensors = {kind: torch.full((elements,), value) for kind in ("weight", "exp_avg")}
    return Fragment(name, (elements,), 0, tensors, {"step": torch.tensor(value)})


def test_a_copy_is_what_was_there_and_lies_in_blocks_of_a_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "BLOCK_ELEMENTS", 10)
    live = [fragment("a", 4, 1.0), fragment("b", 12, 2.0), fragment("c", 3, 3.0), fragment("d", 0, 4.0)]
    held = Snapshot()
    copies = held.take(live)
    tensors = [tensor for copy in copies for tensor in copy.tensors.values()]
    blocks = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    assert sorted(blocks.values()) == [4 * 6, 4 * 8, 4 * 12, 4 * 12]  # 2 of 4; each of 12 alone; 2 of 3 and nothing
    for f in live:
        f.tensors["weight"].add_(1)
    assert [copy.tensors["weight"].tolist() for copy in copies] == [[1.0] * 4, [2.0] * 12, [3.0] * 3, []]
    again = held.take(live)
    assert [c.tensors["weight"].data_ptr() for c in again] == [c.tensors["weight"].data_ptr() for c in copies]
    assert again[0].tensors["weight"].tolist() == [2.0] * 4
    assert [float(copy.scalars["step"]) for copy in again] == [1.0, 2.0, 3.0, 4.0]


def test_other_sizes_get_other_memory() -> None:
    held = Snapshot()
    held.take([fragment("a", 4, 1.0)])
    (copy,) = held.take([fragment("a", 5, 2.0)])
    assert copy.tensors["exp_avg"].tolist() == [2.0] * 5
