"""Any cut of the parameters can be read back as any other."""

from pathlib import Path

import pytest
import torch

from gptscale.checkpoint.layout import CheckpointManifest, ParameterRecord, Range, part_name
from gptscale.checkpoint.portable import merge_parts, read_fragments, write_part
from gptscale.errors import CheckpointError
from gptscale.runtime.fragments import Fragment, share

SIZES = {"a": 10, "b": 3, "c": 17}


def whole(fill: float | None = None) -> list[Fragment]:
    """Three parameters with values 0.., or filled."""
    made = []
    for name, size in SIZES.items():
        values = torch.arange(float(size)) if fill is None else torch.full((size,), fill)
        made.append(Fragment(name, (size,), 0, {"weight": values, "exp_avg": -values}, {"step": torch.tensor(2.0)}))
    return made


def write_by(folder: Path, world: int) -> CheckpointManifest:
    parts = [write_part(folder, part_name(r, world), share(whole(), r, world)) for r in range(world)]
    files = {p.file: p.record for p in parts}
    return CheckpointManifest(1, {}, {}, "", "ddp", world, files, merge_parts(parts[::-1]))  # HSDP has them in no order


@pytest.mark.parametrize("writers", [1, 2, 4, 7])
@pytest.mark.parametrize("readers", [1, 3, 4])
def test_parts_of_any_number_of_ranks_are_read_by_any_other_number(tmp_path: Path, writers: int, readers: int) -> None:
    manifest = write_by(tmp_path, writers)
    target = whole(fill=-1.0)
    for rank in range(readers):
        read_fragments(tmp_path, manifest, list(share(target, rank, readers)))
    for found, expected in zip(target, whole(), strict=True):
        for kind in ("weight", "exp_avg"):
            assert torch.equal(found.tensors[kind], expected.tensors[kind])


def test_a_share_is_equal_to_one_element() -> None:
    for world in (1, 2, 4, 7):
        sizes = [sum(f.numel for f in share(whole(), rank, world)) for rank in range(world)]
        assert sum(sizes) == 30
        assert max(sizes) - min(sizes) <= 1


def record(*ranges: tuple[int, int]) -> ParameterRecord:
    return ParameterRecord([6], ["weight"], {}, [Range(start, numel, "f") for start, numel in ranges])


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ([(0, 2), (3, 3)], "w: elements 2 on were saved twice or not at all"),
        ([(0, 4), (3, 3)], "w: elements 3 on were saved twice or not at all"),
        ([(0, 5)], "w: 5 of 6 elements were saved"),
    ],
)
def test_a_hole_or_an_overlap_between_ranks_is_refused(ranges: list[tuple[int, int]], message: str) -> None:
    from gptscale.checkpoint.layout import FileRecord
    from gptscale.checkpoint.portable import PartRecord

    parts = [PartRecord("f", FileRecord(0, ""), {"w": record(r)}) for r in ranges]
    with pytest.raises(CheckpointError, match=message):
        merge_parts(parts)
