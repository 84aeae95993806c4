"""A corpus is opened only when it is whole, and trained on only when it suffices."""

from collections.abc import Callable
from pathlib import Path

import pytest

from gptscale.config.schema import Config
from gptscale.data import corpus as module
from gptscale.data.corpus import check_corpus, open_corpus
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
    match = r"shard .*val-00000.bin is damaged: its SHA-256 is .*; run prepare again, which makes that shard again"
    with pytest.raises(DataError, match=match):
        open_corpus(cfg.data.dir)
    prepare(cfg, lambda line: None)
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
        r"validation split holds 11 tokens, one window needs 12; raise data.validation_fraction=0.25, "
        r"use data.split=tail, or lower model.context_length=11"
    )
    with pytest.raises(DataError, match=match):
        check_corpus(
            corpus, too_long.model_copy(update={"train": cfg.train.model_copy(update={"tokens_per_step": 11})})
        )
