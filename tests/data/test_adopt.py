"""Other projects' token files become a corpus where they lie, and ours are read by an independent reader of llm.c's."""

import glob
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gptscale.config.schema import Config
from gptscale.data.adopt import adopt
from gptscale.data.corpora import check_corpora, open_corpora
from gptscale.data.corpus import open_corpus
from gptscale.data.prepare import prepare
from gptscale.data.verify import find_damage, verify_corpus
from gptscale.errors import DataError

Make = Callable[..., Config]
IDS = [50256, 15496, 11, 314, 716, 50256, 15496, 995]


def llmc(path: Path, ids: list[int], dtype: str = "<u2") -> Path:
    """A file as llm.c's data scripts write it: 256 int32, of which three count, then the tokens."""
    magic, version = (20240520, 1) if dtype == "<u2" else (20240801, 7)
    path.write_bytes(struct.pack("<256i", magic, version, len(ids), *[0] * 253) + np.array(ids, dtype).tobytes())
    return path


def nanogpt(path: Path, ids: list[int]) -> Path:
    np.array(ids, "<u2").tofile(path)
    return path


def megatron(path: Path, sequences: list[list[int]], code: int = 8, version: int = 1) -> Path:
    """The two files of Megatron-LM's indexed data set, each sequence a document."""
    dtype = {8: "<u2", 4: "<i4"}.get(code, "<u2")
    lengths = np.array([len(s) for s in sequences], "<i4")
    places = (np.cumsum(lengths) - lengths).astype("<i8") * np.dtype(dtype).itemsize
    head = b"MMIDIDX\0\0" + struct.pack("<QBQQ", version, code, len(sequences), len(sequences) + 1)
    documents = np.arange(len(sequences) + 1, dtype="<i8")
    path.with_suffix(".idx").write_bytes(head + lengths.tobytes() + places.tobytes() + documents.tobytes())
    np.array([i for s in sequences for i in s], dtype).tofile(path)
    return path


def make(kind: str, path: Path, ids: list[int]) -> Path:
    if kind.startswith("megatron"):
        return megatron(path, [ids[:5], ids[5:]], code=4 if kind.endswith("int32") else 8)
    return llmc(path, ids) if kind == "llm.c" else llmc(path, ids, "<u4") if kind == "llm.c 32" else nanogpt(path, ids)


@pytest.mark.parametrize("kind", ["nanoGPT", "llm.c", "llm.c 32", "megatron", "megatron int32"])
def test_a_token_file_is_recognised_and_read_where_it_lies(kind: str, tmp_path: Path, make_config: Make) -> None:
    train, val = make(kind, tmp_path / "train.bin", IDS * 3), make(kind, tmp_path / "val.bin", IDS)
    before = train.read_bytes()
    said: list[str] = []
    manifest = adopt(tmp_path / "corpus", [str(train)], [str(val)], say=said.append)
    opened = open_corpus(tmp_path / "corpus")
    assert opened.train.read(0, 24).tolist() == IDS * 3
    assert opened.val.read(0, 8).tolist() == IDS
    first = manifest.shards[0]
    # "Hello, I am" and "Hello world", three times
    assert (first.tokens, first.documents, first.text_bytes) == (24, 6, 3 * (11 + 11))
    assert [path.name for path in (tmp_path / "corpus").iterdir()] == ["manifest.json"]
    assert train.read_bytes() == before
    assert said[-1] == f"fingerprint: {manifest.fingerprint}"
    data = {"dir": tmp_path / "corpus", "tokenizer": "gpt2", "source": None}
    cfg = make_config("x", data=data, model={"vocab_size": 50257})
    check_corpora(open_corpora(cfg), cfg)
    longer = make_config("x", data=data, model={"vocab_size": 50257, "context_length": 8})
    with pytest.raises(
        DataError, match=r"holds 8 tokens, one window needs 9; adopt it again with longer --val files, or"
    ):
        check_corpora(open_corpora(longer), longer)


def test_patterns_give_files_in_order_and_adopting_again_is_allowed(tmp_path: Path) -> None:
    for number in (2, 1):
        nanogpt(tmp_path / f"train_{number}.bin", [number] * 5)
    val = str(llmc(tmp_path / "val.bin", IDS))
    for _ in range(2):
        adopt(tmp_path / "corpus", [str(tmp_path / "train_*.bin")], [val], say=lambda line: None)
    assert open_corpus(tmp_path / "corpus").train.read(0, 10).tolist() == [1] * 5 + [2] * 5


def test_the_order_of_a_pattern_is_not_the_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [str(nanogpt(tmp_path / f"train_{number}.bin", [number] * 5)) for number in (2, 1)]
    monkeypatch.setattr(glob, "glob", lambda pattern: files)
    val = str(nanogpt(tmp_path / "val.bin", IDS))
    adopt(tmp_path / "corpus", [str(tmp_path / "train_*.bin")], [val], say=lambda line: None)
    assert open_corpus(tmp_path / "corpus").train.read(0, 10).tolist() == [1] * 5 + [2] * 5


def test_a_file_that_is_there_is_no_pattern(tmp_path: Path) -> None:
    for name in ("x[1].bin", "x1.bin", "val.bin"):
        nanogpt(tmp_path / name, IDS)
    names = [str(tmp_path / name) for name in ("x[1].bin", "val.bin")]
    manifest = adopt(tmp_path / "corpus", names[:1], names[1:], say=lambda line: None)
    assert [shard.file for shard in manifest.shards] == names


def test_damage_to_an_adopted_file_is_named(tmp_path: Path) -> None:
    train, val = nanogpt(tmp_path / "train.bin", IDS), nanogpt(tmp_path / "val.bin", IDS)
    adopt(tmp_path / "corpus", [str(train)], [str(val)], say=lambda line: None)
    nanogpt(train, [1, *IDS[1:]])
    with pytest.raises(
        DataError, match=r"adopted file .*train.bin is damaged in its bytes 0 to 16: .*; put the file back"
    ):
        verify_corpus(tmp_path / "corpus")
    nanogpt(train, IDS[1:])
    with pytest.raises(
        DataError, match=r"adopted file .*train.bin has 14 bytes, not 16 as when it was adopted; put it"
    ):
        open_corpus(tmp_path / "corpus")
    nanogpt(train, [*IDS, 1])
    with pytest.raises(DataError, match="train.bin has 18 bytes, not 16 as when it was adopted"):
        open_corpus(tmp_path / "corpus")
    train.unlink()
    with pytest.raises(DataError, match=r"adopted file .*train.bin cannot be read: No such file or directory; put it"):
        open_corpus(tmp_path / "corpus")


def test_a_manifest_that_counts_other_tokens_than_an_adopted_file_has_is_named(tmp_path: Path) -> None:
    train, val = nanogpt(tmp_path / "train.bin", IDS), llmc(tmp_path / "val.bin", IDS)
    manifest = adopt(tmp_path / "corpus", [str(train)], [str(val)], say=lambda line: None)
    assert find_damage(tmp_path / "corpus") == []
    changed = tuple(shard.model_copy(update={"tokens": shard.tokens + 1}) for shard in manifest.shards)
    manifest.model_copy(update={"shards": changed}).save(tmp_path / "corpus")
    says = "manifest.json says that adopted file"
    found = find_damage(tmp_path / "corpus")
    assert found[0].startswith(f"{says} {train} has 18 bytes, and it has 16, with the right hash")
    assert found[1].startswith(
        f"{says} {val} has 1,042 bytes, and it has 1,040, with the right hash"
    )  # 1,024 of header


def refused(folder: Path, train: Path | str, tokenizer: str = "gpt2") -> str:
    val = nanogpt(folder / "good.bin", IDS)
    with pytest.raises(DataError) as caught:
        adopt(folder / "corpus", [str(train)], [str(val)], tokenizer, lambda line: None)
    return str(caught.value)


def test_what_is_no_token_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.bin"
    assert "train.bin cannot be adopted: No such file" in refused(tmp_path, path)
    assert "--train nothing*.bin matches no file" in refused(tmp_path, "nothing*.bin")
    path.write_bytes(b"abc")
    assert "has 3 bytes, which are no uint16 tokens, and no header that is known; copy it" in refused(tmp_path, path)
    nanogpt(path, [1, 60000])
    assert "holds id 60,000, and tokenizer gpt2 has 50,257; it is no such file, or choose" in refused(tmp_path, path)
    llmc(path, IDS).write_bytes(path.read_bytes()[:-1])
    assert "has 1,039 bytes, but its header says 1,040; copy it again" in refused(tmp_path, path)
    llmc(path, IDS).write_bytes(path.read_bytes() + bytes(2))
    assert "has 1,042 bytes, but its header says 1,040; copy it again" in refused(tmp_path, path)
    llmc(path, IDS, "<u4")
    assert "tokens of two widths" in refused(tmp_path, path)


def test_a_file_is_looked_at_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptscale.data.adopt._TOKENS_AT_ONCE", 5)
    train, val = nanogpt(tmp_path / "train.bin", IDS * 3), nanogpt(tmp_path / "val.bin", IDS)
    first = adopt(tmp_path / "corpus", [str(train)], [str(val)], say=lambda line: None).shards[0]
    assert (first.documents, first.text_bytes) == (6, 3 * (11 + 11))
    assert "holds id 50,257, and tokenizer gpt2 has 50,257" in refused(tmp_path, nanogpt(train, [*IDS, 50257]))


def test_files_of_other_kinds_are_no_token_files(tmp_path: Path) -> None:
    ids = np.arange(1000, 1200, dtype=np.uint16)
    np.save(tmp_path / "train.npy", ids)
    assert "train.npy is an array of NumPy, no token file; write its tokens as uint16" in refused(
        tmp_path, tmp_path / "train.npy"
    )
    (tmp_path / "book.txt").write_text("text " * 100)
    assert "book.txt is text, no token file" in refused(tmp_path, tmp_path / "book.txt")
    path = tmp_path / "train.bin"
    for wide in ("<u4", "<i8"):
        path.write_bytes(ids.astype(wide).tobytes())
        assert "every second of its numbers of 16 bits is 0, so its tokens are wider" in refused(tmp_path, path)
    nanogpt(path, [1, 0, 2, 0])
    val = nanogpt(tmp_path / "good.bin", IDS)
    assert len(adopt(tmp_path / "corpus", [str(path)], [str(val)], say=lambda line: None).shards) == 2


def test_a_path_that_no_manifest_can_hold_is_told_before_anything_is_read(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"train-\xff.bin")
    try:
        nanogpt(path, IDS)
    except OSError:
        pytest.skip("this file system has UTF-8 only")
    assert "is no UTF-8, and so no manifest can hold it; rename that file" in refused(tmp_path, path)


def test_a_file_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    good = tmp_path / "good.bin"
    assert f"{good} is named by --train and again by --val; leave it out of one" in refused(tmp_path, good)
    (tmp_path / "link.bin").symlink_to(good)
    assert "is named by --train and again by --val" in refused(tmp_path, tmp_path / "link.bin")


def test_an_index_alone_is_refused(tmp_path: Path) -> None:
    path = megatron(tmp_path / "train.bin", [IDS])
    assert "train.idx is an index; name train.bin, which lies" in refused(tmp_path, path.with_suffix(".idx"))
    path.unlink()
    assert "No such file or directory; its index is there without it; check its path" in refused(tmp_path, path)


def test_a_file_without_tokens_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.bin"
    assert "(llm.c (uint16 behind its header)) holds no tokens; leave it out" in refused(tmp_path, llmc(path, []))
    assert "(Megatron-LM (uint16 with an index)) holds no tokens" in refused(tmp_path, megatron(path, []))


def test_a_damaged_index_of_megatron_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.bin"
    megatron(path, [IDS], version=2)
    assert "train.idx is no index of Megatron-LM (MMIDIDX, version 1); move it away" in refused(tmp_path, path)
    megatron(path, [IDS], code=6)
    assert "says type code 6; 8 (uint16) and 4 (int32) hold tokens" in refused(tmp_path, path)
    index = megatron(path, [IDS]).with_suffix(".idx")
    index.write_bytes(index.read_bytes()[:-1])
    assert "bytes, which do not hold its 1 sequences; copy it again" in refused(tmp_path, path)
    megatron(path, [IDS])
    nanogpt(path, IDS[1:])
    assert "does not describe" in refused(tmp_path, path)


def test_sequences_in_another_order_are_refused(tmp_path: Path) -> None:
    path = megatron(tmp_path / "train.bin", [IDS[:4], IDS[4:]])
    index = path.with_suffix(".idx")
    content = bytearray(index.read_bytes())
    content[34 + 8 : 34 + 24] = struct.pack("<qq", 8, 0)  # behind a head of 34 bytes and two lengths
    index.write_bytes(content)
    assert "does not describe" in refused(tmp_path, path)


def test_a_prepared_corpus_and_a_folder_that_cannot_be_made_are_left_alone(tmp_path: Path, make_config: Make) -> None:
    (tmp_path / "x.txt").write_text("text " * 20)
    prepare(make_config(tmp_path / "x.txt", data={"validation_fraction": 0}), lambda line: None)
    assert "holds a corpus that was prepared; choose another folder" in refused(tmp_path, tmp_path / "good.bin")
    (tmp_path / "corpus" / "manifest.json").unlink()
    (tmp_path / "corpus" / "settings.json").unlink()
    assert "corpus whose preparation is not finished; choose another" in refused(tmp_path, tmp_path / "good.bin")
    for receipt in (tmp_path / "corpus").glob("unit-*.json"):
        receipt.unlink()
    (tmp_path / "corpus" / "settings.json").touch()
    assert "corpus whose preparation is not finished; choose another" in refused(tmp_path, tmp_path / "good.bin")
    good = str(nanogpt(tmp_path / "good.bin", IDS))
    with pytest.raises(DataError, match=r"good.bin/corpus cannot be made: Not a directory; choose another folder"):
        adopt(tmp_path / "good.bin" / "corpus", [good], [good], say=lambda line: None)


def read_like_llmc(path: Path) -> list[int]:
    """An independent reader, from the format's description: fread of 256 ints, two checks, then ntok uint16."""
    with path.open("rb") as file:
        header = struct.unpack("<256i", file.read(1024))
        assert header[0] == 20240520
        assert header[1] == 1
        content = file.read()
    assert len(content) == 2 * header[2]
    return list(struct.unpack(f"<{header[2]}H", content))


def test_our_shards_are_read_by_llmcs_loader(tmp_path: Path, make_config: Make) -> None:
    (tmp_path / "x.txt").write_text("Hello, I am\nHello world")
    data = {"tokenizer": "gpt2", "validation_fraction": 0}
    cfg = make_config(tmp_path / "x.txt", data=data, model={"vocab_size": 50257})
    prepare(cfg, lambda line: None)
    assert read_like_llmc(cfg.data.dir / "train-00000.bin") == IDS


def test_preparing_over_an_adopted_corpus_is_refused(tmp_path: Path, make_config: Make) -> None:
    (tmp_path / "x.txt").write_text("text " * 20)
    cfg = make_config(tmp_path / "x.txt")
    files = [str(nanogpt(tmp_path / name, IDS)) for name in ("train.bin", "val.bin")]
    adopt(cfg.data.folder, files[:1], files[1:], "gpt2", lambda line: None)
    with pytest.raises(DataError, match=r"holds another corpus \(.*source adopted there, .*x.txt here"):
        prepare(cfg, lambda line: None)
