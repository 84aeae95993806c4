import sys
from pathlib import Path

import pytest
import torch

from gptscale.weights.files import open_tensors, write_tensors


def test_a_range_of_a_written_view_is_read_back(tmp_path: Path) -> None:
    flat = torch.arange(20.0)
    write_tensors(tmp_path / "t.safetensors", {"a": flat[3:9], "b": flat[9:10]})
    with open_tensors(tmp_path / "t.safetensors") as reader:
        assert sorted(reader.keys()) == ["a", "b"]
        place = torch.empty(3)
        reader.read_into(place, "a", 1)
        assert place.tolist() == [4.0, 5.0, 6.0]
    assert (tmp_path / "t.safetensors").stat().st_mode & 0o777 == 0o644


def test_what_is_no_safetensors_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(Exception, match=r"(?i)header"), open_tensors(tmp_path / "t.safetensors"):
        pass


def test_a_tensor_is_read_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tensors(tmp_path / "t.safetensors", {"a": torch.arange(7.0), "none": torch.empty(0)})
    monkeypatch.setattr("gptscale.weights.files.CHUNK_ELEMENTS", 3)
    with open_tensors(tmp_path / "t.safetensors") as reader:
        assert reader.shape("a") == (7,)
        assert [piece.tolist() for piece in reader.pieces("a")] == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0], [6.0]]
        assert list(reader.pieces("none")) == []


@pytest.mark.skipif(sys.platform != "linux", reason="counts what is read as Linux does")
def test_pieces_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_so_far() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])  # rchar

    size = 4 * 10**6
    write_tensors(tmp_path / "t.safetensors", {"a": torch.ones(10**6)})
    monkeypatch.setattr("gptscale.weights.files.CHUNK_ELEMENTS", 10**5)
    with open_tensors(tmp_path / "t.safetensors") as reader:
        before = read_so_far()
        assert sum(float(piece.sum()) for piece in reader.pieces("a")) == 10**6
        assert size <= read_so_far() - before < 1.1 * size


def test_elements_of_another_type_are_no_float32(tmp_path: Path) -> None:
    write_tensors(tmp_path / "t.safetensors", {"a": torch.ones(4, dtype=torch.bfloat16)})
    with open_tensors(tmp_path / "t.safetensors") as reader:
        assert reader.dtype("a") == "BF16"
        with pytest.raises(OSError, match=r"t.safetensors: a is of type BF16, not F32$"):
            reader.read_into(torch.empty(2), "a", 0)
