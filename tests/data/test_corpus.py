"""A corpus is opened only when it is whole, and trained on only when it suffices."""

import os
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from gptscale import disk
from gptscale.config.schema import Config
from gptscale.data import corpus as module
from gptscale.data.corpora import open_corpora
from gptscale.data.corpus import check_corpus, check_split, open_corpus
from gptscale.data.loader import StepLoader
from gptscale.data.manifest import Split, load_manifest
from gptscale.data.prepare import prepare
from gptscale.errors import DataError

Make = Callable[..., Config]


@pytest.fixture
def cfg(tmp_path: Path, make_config: Make) -> Config:
    # 40 characters in one document: 1 + 30 training tokens, 1 + 10 validation tokens
    (tmp_path / "x.txt").write_text("0123456789" * 4)
    cfg = make_config(tmp_path / "x.txt", data={"split": "tail", "validation_fraction": 0.25})
    prepare(cfg, lambda line: None)
    return cfg


def with_model(cfg: Config, **fields: int) -> Config:
    return cfg.model_copy(update={"model": cfg.model.model_copy(update=fields)})


def with_data(cfg: Config, **fields: object) -> Config:
    return cfg.model_copy(update={"data": cfg.data.model_copy(update=fields)})


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_corpus_has_its_streams_and_its_tokenizer(cfg: Config) -> None:
    corpus = open_corpus(cfg.data.dir)
    assert (len(corpus.train), len(corpus.val), corpus.tokenizer) == (31, 11, "bytes")
    assert corpus.val.read(0, 3).tolist() == [256, ord("0"), ord("1")]
    check_corpus(corpus, cfg)


def test_a_missing_corpus_says_to_prepare(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no corpus; run `gptscale prepare CONFIG`"):
        open_corpus(tmp_path / "nowhere")


def test_a_flipped_bit_names_the_shard_and_prepare_mends_it(cfg: Config) -> None:
    damage(cfg.data.dir / "val-00000.bin")
    match = r"shard .*val-00000.bin is damaged in its bytes 0 to 1,046: its SHA-256 is .*; run prepare again, which makes that shard again"
    with pytest.raises(DataError, match=match):
        open_corpus(cfg.data.dir)
    prepare(cfg, lambda line: None)
    assert len(open_corpus(cfg.data.dir).val) == 11


@pytest.mark.parametrize("how", ["flip", "cut", "delete"])
def test_damaged_document_starts_are_noticed_and_prepare_mends_them(cfg: Config, how: str) -> None:
    path = cfg.data.dir / "train-00000.starts.npy"
    whole = path.read_bytes()
    damage(path) if how == "flip" else path.write_bytes(whole[:-1]) if how == "cut" else path.unlink()
    match = r"document starts .*train-00000.starts.npy is (damaged in its bytes 0 to .*: its SHA-256 is|missing).*; run prepare again, which"
    with pytest.raises(DataError, match=match):
        open_corpus(cfg.data.dir)
    prepare(cfg, lambda line: None)
    assert path.read_bytes() == whole
    assert len(open_corpus(cfg.data.dir).val) == 11


def test_large_corpora_are_opened_without_reading_them(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    damage(cfg.data.dir / "val-00000.bin")
    monkeypatch.setattr(module, "HASHED_BYTES", (31 + 11) * 2 - 1)
    assert len(open_corpus(cfg.data.dir).val) == 11
    monkeypatch.setattr(module, "HASHED_BYTES", (31 + 11) * 2)
    with pytest.raises(DataError, match="is damaged"):
        open_corpus(cfg.data.dir)


def test_a_shard_that_is_not_the_manifests_is_named(cfg: Config) -> None:
    train, val = cfg.data.dir / "train-00000.bin", cfg.data.dir / "val-00000.bin"
    train.write_bytes(val.read_bytes())
    with pytest.raises(DataError, match=r"train-00000.bin holds 11 tokens, but manifest.json says 31; run prepare"):
        open_corpus(cfg.data.dir)


def test_another_tokenizer_is_refused(cfg: Config) -> None:
    match = r"was made with tokenizer bytes, but data.tokenizer=gpt2; set data.tokenizer=bytes or choose another"
    with pytest.raises(DataError, match=match):
        check_corpus(open_corpus(cfg.data.dir), with_data(cfg, tokenizer="gpt2"))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"split_seed": 2}, "data.split_seed=0, not 2"),
        ({"validation_fraction": 0.5}, "data.validation_fraction=0.25, not 0.5"),
        ({"split": "hash"}, "data.split=tail, not hash"),
        ({"end_of_text": False}, "data.end_of_text=True, not False"),
    ],
)
def test_another_split_than_the_configs_is_refused(cfg: Config, setting: dict[str, object], words: str) -> None:
    with pytest.raises(DataError, match=rf"was prepared with {words}; set that again, or prepare"):
        check_corpus(open_corpus(cfg.data.dir), with_data(cfg, **setting))


def test_a_vocabulary_too_small_for_the_tokenizer_is_refused(cfg: Config) -> None:
    match = r"tokenizer bytes has 257 tokens, but model.vocab_size=256; set model.vocab_size=257 or more"
    with pytest.raises(DataError, match=match):
        check_corpus(open_corpus(cfg.data.dir), with_model(cfg, vocab_size=256))


def test_a_step_of_more_samples_than_there_are_is_refused(cfg: Config) -> None:
    # 31 tokens make (31 - 1 - 4) // 4 + 1 = 7 samples of 4 + 1; 8 need 7 * 4 + 5 = 33 tokens
    corpus = open_corpus(cfg.data.dir)
    check_corpus(corpus, cfg.model_copy(update={"train": cfg.train.model_copy(update={"tokens_per_step": 28})}))
    match = r"training split holds 31 tokens, which make 7 samples, and one step needs 8 \(33 tokens\); lower train"
    with pytest.raises(DataError, match=match):
        check_corpus(corpus, cfg.model_copy(update={"train": cfg.train.model_copy(update={"tokens_per_step": 32})}))


def test_a_validation_split_without_one_window_is_refused(cfg: Config) -> None:
    corpus = open_corpus(cfg.data.dir)
    fits = with_model(cfg, context_length=10)
    check_corpus(corpus, fits.model_copy(update={"train": cfg.train.model_copy(update={"tokens_per_step": 10})}))
    too_long = with_model(cfg, context_length=11)
    match = (
        r"validation split holds 11 tokens, one window needs 12; prepare another data.dir with more than "
        r"data.validation_fraction=0.25 or with data.split=tail, or lower model.context_length=11"
    )
    with pytest.raises(DataError, match=match):
        check_corpus(
            corpus, too_long.model_copy(update={"train": cfg.train.model_copy(update={"tokens_per_step": 11})})
        )


def test_other_ranks_of_the_same_tokenizer_are_refused(cfg: Config, tmp_path: Path) -> None:
    manifest = load_manifest(cfg.data.dir)
    tokenizer = {**manifest.settings.tokenizer, "ranks_sha256": "0" * 64}
    settings = manifest.settings.model_copy(update={"tokenizer": tokenizer})
    manifest.model_copy(update={"settings": settings}).save(cfg.data.dir)
    corpus = open_corpus(cfg.data.dir)
    match = (
        r"was made with other ranks of tokenizer bytes: 000000000000..., not [0-9a-f]{12}...; choose another data.dir$"
    )
    with pytest.raises(DataError, match=match):
        check_corpus(corpus, cfg)
    with pytest.raises(
        DataError, match=rf"^{tmp_path} was made with other ranks of tokenizer bytes.*; choose a corpus"
    ):
        check_split(corpus, cfg, "val", tmp_path)


def test_a_split_is_enough_with_one_window_and_needs_no_whole_step(cfg: Config) -> None:
    corpus = open_corpus(cfg.data.dir)  # 31 training tokens, 11 validation tokens
    large = cfg.model_copy(update={"train": cfg.train.model_copy(update={"tokens_per_step": 3000})})
    check_split(corpus, with_model(large, context_length=10), "val", cfg.data.dir)
    check_split(corpus, with_model(large, context_length=30), "train", cfg.data.dir)


@pytest.mark.parametrize(("split", "context", "tokens"), [("val", 11, 11), ("train", 31, 31)])
def test_a_split_without_one_window_is_refused_by_its_folder(
    cfg: Config, split: Split, context: int, tokens: int
) -> None:
    match = (
        rf"^another: its {split} split holds {tokens} tokens, and one window of model.context_length={context} "
        rf"needs {context + 1}; choose another split or corpus$"
    )
    with pytest.raises(DataError, match=match):
        check_split(open_corpus(cfg.data.dir), with_model(cfg, context_length=context), split, Path("another"))


def test_a_split_of_another_tokenizer_or_a_larger_vocabulary_is_refused_by_its_folder(cfg: Config) -> None:
    corpus, folder = open_corpus(cfg.data.dir), Path("another")
    match = r"^another was made with tokenizer bytes, but data.tokenizer=gpt2; choose a corpus of the model's own tok"
    with pytest.raises(DataError, match=match):
        check_split(corpus, with_data(cfg, tokenizer="gpt2"), "val", folder)
    match = (
        r"^another does not fit the model: tokenizer bytes has 257 tokens, but model.vocab_size=256; choose a corpus"
    )
    with pytest.raises(DataError, match=match):
        check_split(corpus, with_model(cfg, vocab_size=256), "val", folder)


def test_a_corpus_on_a_read_only_file_system_is_trained_on(cfg: Config, tmp_path: Path) -> None:
    if os.geteuid() or subprocess.run(["mount", "--bind", cfg.data.dir, cfg.data.dir]).returncode:
        pytest.skip("needs the right to mount")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", cfg.data.dir], check=True)
        with pytest.raises(OSError, match="Read-only"):
            (cfg.data.dir / "x").touch()
        corpora = open_corpora(cfg)
        settings = {"context_length": 4, "sequences_per_step": 2, "micro_batch_sequences": 2, "total_steps": 1}
        with StepLoader(corpora.train, sampler=corpora.sampler(cfg), rank=0, world=1, **settings) as loader:
            assert loader.next_step()[0].inputs.shape == (2, 4)
    finally:
        subprocess.run(["umount", "-l", cfg.data.dir], check=True)


def test_a_corpus_of_more_shards_than_files_may_be_open_raises_the_limit(
    cfg: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(disk, "OTHER_FILES", 10)
    here = len(os.listdir("/dev/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (here + 3, hard))
    try:
        open_corpus(cfg.data.folder)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > here + 3
        monkeypatch.setattr(disk, "OTHER_FILES", 10**9)  # are hoped for, not asked for
        open_corpus(cfg.data.folder)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == hard
        monkeypatch.setattr(resource, "getrlimit", lambda which: (here, here))
        with pytest.raises(
            DataError, match=rf"shards, and this process may have no more than {here} files open; raise"
        ):
            open_corpus(cfg.data.folder)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_corpus_of_more_shards_than_a_process_may_map_is_refused_before_it_is_opened(
    cfg: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "most").write_text("65530\n")
    (tmp_path / "maps").write_bytes(b"a file's name is bytes: \xff\n" * 1000)
    monkeypatch.setattr(module, "MOST_MAPS", tmp_path / "most")
    monkeypatch.setattr(module, "MAPS", tmp_path / "maps")
    monkeypatch.setattr(module, "allow_open_files", lambda more: None)
    most = 65530 - 1000 - module.OTHER_MAPS
    module._allow_open_files(cfg.data.folder, most)
    match = (
        rf"has {most + 1:,} shards, and this machine lets a process map no more than 65,530 pieces of memory; raise "
        rf"that on all machines \(sysctl -w vm.max_map_count={2 * 65531}\), or prepare the corpus with a larger"
    )
    with pytest.raises(DataError, match=match):
        module._allow_open_files(cfg.data.folder, most + 1)
    monkeypatch.setattr(module, "MOST_MAPS", tmp_path / "none")  # as on a Mac
    module._allow_open_files(cfg.data.folder, most + 1)
