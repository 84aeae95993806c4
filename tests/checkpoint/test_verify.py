"""Whatever is wrong with a checkpoint is named, and nothing is said of a good one."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gptscale.checkpoint.find import verified
from gptscale.checkpoint.layout import MANIFEST, Range
from gptscale.checkpoint.verify import checkpoints_at, verify_checkpoints
from gptscale.errors import CheckpointError
from gptscale.weights import files
from tests.checkpoint.by_hand import FILES, RANGES, TENSORS, write_checkpoint


def problems(folder: Path, finite: bool = False) -> list[str]:
    (verdict,) = verify_checkpoints([folder], finite=finite)
    return verdict.problems


def test_a_good_checkpoint_has_no_problem(tmp_path: Path) -> None:
    (verdict,) = verify_checkpoints([write_checkpoint(tmp_path / "step-00000005")], finite=True)
    assert verdict.problems == []
    assert verdict.manifest is not None
    assert verdict.manifest.step == 5


@pytest.mark.parametrize("file", [*FILES, MANIFEST])
def test_a_flipped_bit_anywhere_in_any_file_is_found(tmp_path: Path, file: str) -> None:
    path = write_checkpoint(tmp_path) / file
    content = path.read_bytes()
    for at in range(0, len(content), 7):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        found = problems(tmp_path)
        assert found, at
        assert file in found[0] or "is no checkpoint" in found[0], at
    path.write_bytes(content)
    assert problems(tmp_path) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "is missing; restore it from a copy"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "it was cut short or changed"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\1"), "is damaged: its hash is not the one in"),
    ],
)
def test_every_wrong_file_is_named_the_first_one_first(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    write_checkpoint(tmp_path)
    for file in FILES:
        damage(tmp_path / file)
    found = problems(tmp_path)
    assert len(found) == 2
    for problem, file in zip(found, FILES, strict=True):
        assert str(tmp_path / file) in problem
        assert message in problem


def test_a_file_that_cannot_be_read_is_a_problem_and_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path)

    def broken(path: Path) -> str:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr("gptscale.checkpoint.layout.fast_hash_file", broken)
    assert all("Input/output error" in problem and "part-0000" in problem for problem in problems(tmp_path))


def without(key: str) -> dict[str, dict[str, torch.Tensor]]:
    return {file: {k: t for k, t in held.items() if k != key} for file, held in TENSORS.items()}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (without("exp_avg/b@0"), "lacks exp_avg/b@0, which manifest.json places there"),
        (
            {**TENSORS, FILES[0]: {**TENSORS[FILES[0]], "momentum/w@0": torch.zeros(4)}},
            "holds momentum/w@0, of which manifest.json does not know",
        ),
        (
            {**TENSORS, FILES[0]: {**TENSORS[FILES[0]], "weight/w@0": torch.zeros(3)}},
            "weight/w@0 has the shape [3], but manifest.json says [4]",
        ),
    ],
)
def test_files_hold_what_the_manifest_says(tmp_path: Path, tensors: Any, message: str) -> None:
    write_checkpoint(tmp_path, tensors)
    for finite in (False, True):
        (problem,) = problems(tmp_path, finite)
        assert message in problem
    assert FILES[0 if "w@0" in message else 1] in problem


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ([Range(0, 4, FILES[0])], "w: 4 of 6 elements were saved"),
        ([Range(0, 4, FILES[0]), Range(5, 1, FILES[1])], "w: elements 4 on were saved twice or not at all"),
    ],
)
def test_ranges_tile_every_parameter(tmp_path: Path, ranges: list[Range], message: str) -> None:
    found = problems(write_checkpoint(tmp_path, ranges={**RANGES, "w": ranges}))
    assert message in found[0]
    assert MANIFEST in found[0]
    with pytest.raises(CheckpointError, match=rf"{MANIFEST}: {message}; write it as .*FORMAT.md says, or use anoth"):
        verified(tmp_path)  # else whatever memory held would be the rest of w


def test_ranges_may_stand_in_any_order(tmp_path: Path) -> None:
    assert problems(write_checkpoint(tmp_path, ranges={**RANGES, "w": RANGES["w"][::-1]})) == []
    verified(tmp_path)


def test_a_range_lies_in_a_file_of_the_checkpoint(tmp_path: Path) -> None:
    lost = [RANGES["w"][0], replace(RANGES["w"][1], file="part-9.safetensors")]
    found = problems(write_checkpoint(tmp_path, ranges={**RANGES, "w": lost}))
    assert "manifest.json places tensors in part-9.safetensors, which is none of its files" in found[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_found_where_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    monkeypatch.setattr(files, "CHUNK_ELEMENTS", 3)
    tensors = {**TENSORS, FILES[0]: {**TENSORS[FILES[0]], "exp_avg/w@0": torch.tensor([0.0, 0.0, 0.0, value])}}
    write_checkpoint(tmp_path, tensors)
    assert problems(tmp_path) == []
    (problem,) = problems(tmp_path, finite=True)
    assert (
        problem
        == f"{tmp_path / FILES[0]}: exp_avg/w@0 holds a value that is not finite; go back to an older checkpoint"
    )


def test_a_run_stands_for_its_checkpoints_the_newest_first(tmp_path: Path) -> None:
    folders = [write_checkpoint(tmp_path / "checkpoints" / f"step-{step:08d}", step=step) for step in (10, 5)]
    assert checkpoints_at(tmp_path) == folders
    (folders[1] / MANIFEST).write_text(json.dumps({"format": "x"}))
    first, second = verify_checkpoints(checkpoints_at(tmp_path))
    assert (first.folder, first.problems) == (folders[0], [])
    assert "is no checkpoint" in second.problems[0]
    assert second.manifest is None


def test_a_folder_is_a_checkpoint_by_its_name_or_by_its_parts(tmp_path: Path) -> None:
    assert checkpoints_at(tmp_path / "step-00000001") == [tmp_path / "step-00000001"]
    copy = write_checkpoint(tmp_path / "copy")
    assert checkpoints_at(copy) == [copy]
    assert checkpoints_at(tmp_path) == []
    run = tmp_path / "step-lr"
    assert checkpoints_at(run) == []
    folder = write_checkpoint(run / "checkpoints" / "step-00000005")
    assert checkpoints_at(run) == [folder]


def test_a_part_of_another_type_is_named(tmp_path: Path) -> None:
    held = {**TENSORS[FILES[1]], "exp_avg/b@0": torch.ones(2, dtype=torch.bfloat16)}
    write_checkpoint(tmp_path, {**TENSORS, FILES[1]: held})
    assert problems(tmp_path) == [f"{tmp_path / FILES[1]}: exp_avg/b@0 is of type BF16, not F32"]
