"""A run on several corpora: one stream, one sampler, one fingerprint."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptscale.config.load import parse_config
from gptscale.config.schema import Config
from gptscale.data.corpora import check_corpora, open_corpora
from gptscale.data.prepare import prepare
from gptscale.data.sampler import Sampler
from gptscale.errors import ConfigError, DataError

Make = Callable[..., Config]


@pytest.fixture
def corpora(tmp_path: Path, make_config: Make) -> list[Path]:
    """Two corpora of one document each: 301 and 101 training tokens, 100 and 34 validation tokens or so."""
    folders = []
    for name, length in [("a", 400), ("b", 134)]:
        (tmp_path / f"{name}.txt").write_text(name * length)
        data = {"dir": tmp_path / name, "split": "tail", "validation_fraction": 0.25}
        prepare(make_config(tmp_path / f"{name}.txt", data=data), lambda line: None)
        folders.append(tmp_path / name)
    return folders


@pytest.fixture
def mixed(corpora: list[Path], tmp_path: Path) -> Callable[..., Config]:
    def make(weights: tuple[float, float] = (3, 2), **data: Any) -> Config:
        mixture = [{"dir": folder, "weight": weight} for folder, weight in zip(corpora, weights, strict=True)]
        return parse_config(
            {
                "run": {"dir": tmp_path / "run"},
                "model": {"context_length": 4, "vocab_size": 257},
                "data": {"mixture": mixture, "tokenizer": "bytes", **data},
                "train": {"steps": 1, "tokens_per_step": 8, "micro_batch_sequences": 1},
            }
        )

    return make


def test_each_corpus_gives_its_share_in_its_own_order_and_epochs(mixed: Callable[..., Config]) -> None:
    cfg = mixed()
    opened = open_corpora(cfg)
    check_corpora(opened, cfg)
    sampler = opened.sampler(cfg)
    assert [one.samples for one in sampler.samplers] == [75, 25]  # (301 - 1) / 4 and (101 - 1) / 4
    starts = sampler.starts(np.arange(1000))
    tokens = opened.train.windows(starts, 2)[:, 1]  # the second token is text for every start, even the first one
    assert sorted(set(tokens.tolist())) == [ord("a"), ord("b")]
    assert (tokens == ord("a")).sum() == 600
    epochs, samples = sampler.locate(np.arange(1000))
    for number, (first, letter) in enumerate([(0, "a"), (301, "b")]):
        mine = starts[tokens == ord(letter)] - first
        assert samples[tokens == ord(letter)].tolist() == (mine // 4).tolist()
        assert epochs[tokens == ord(letter)].tolist() == [n // [75, 25][number] for n in range(len(mine))]
        alone = Sampler([75, 25][number], 4, cfg.run.seed)
        assert mine.tolist() == alone.starts(np.arange(len(mine))).tolist()
    assert sampler.epochs(1000) == {"epoch/a": 600 / 75, "epoch/b": 400 / 25}


def test_a_run_may_read_its_samples_in_blocks_of_neighbours(corpora: list[Path], make_config: Make) -> None:
    cfg = make_config("x", data={"dir": corpora[0], "shuffle_block_samples": 5})
    starts = open_corpora(cfg).sampler(cfg).starts(np.arange(75))  # 15 blocks
    blocks = np.sort((starts // 4).reshape(15, 5))  # a sample is 4 tokens further than the one before
    assert (blocks == blocks[:, :1] + np.arange(5)).all()
    assert sorted(blocks[:, 0].tolist()) == list(range(0, 75, 5))
    assert blocks[:, 0].tolist() != sorted(blocks[:, 0].tolist())


def test_a_mixture_has_one_fingerprint_of_its_corpora_and_shares(mixed: Callable[..., Config]) -> None:
    assert open_corpora(mixed((3, 2))).fingerprint == open_corpora(mixed((0.6, 0.4))).fingerprint
    assert open_corpora(mixed((3, 2))).fingerprint != open_corpora(mixed((2, 3))).fingerprint
    opened = open_corpora(mixed((3, 2)))
    assert replace(opened, parts=opened.parts[::-1]).fingerprint != opened.fingerprint


def test_evaluation_windows_are_shared_by_weight_and_each_corpus_has_one(mixed: Callable[..., Config]) -> None:
    assert open_corpora(mixed()).window_counts(10) == [6, 4]
    assert open_corpora(mixed((99, 1))).window_counts(10) == [10, 1]
    assert open_corpora(mixed()).window_counts(None) == [None, None]


def test_one_corpus_is_a_mixture_of_itself(corpora: list[Path], make_config: Make) -> None:
    cfg = make_config("x", data={"dir": corpora[0]})
    opened = open_corpora(cfg)
    assert opened.fingerprint == opened.parts[0].manifest.fingerprint
    sampler = opened.sampler(cfg)
    positions = np.arange(200)
    assert sampler.starts(positions).tolist() == Sampler(75, 4, cfg.run.seed).starts(positions).tolist()
    assert sampler.epochs(100) == {}
    assert opened.window_counts(7) == [7]


def test_a_corpus_that_does_not_fit_is_named_by_its_folder(mixed: Callable[..., Config], corpora: list[Path]) -> None:
    cfg = mixed()
    longer = cfg.model_copy(update={"model": cfg.model.model_copy(update={"context_length": 60})})
    with pytest.raises(DataError, match=rf"^{corpora[1]}: its val split holds 3\d tokens, and one window"):
        check_corpora(open_corpora(cfg), longer)
    with pytest.raises(DataError, match=rf"^{corpora[0]} was made with tokenizer bytes, but data.tokenizer=gpt2"):
        check_corpora(open_corpora(cfg), mixed(tokenizer="gpt2"))


def test_a_mixture_is_not_prepared_as_one(mixed: Callable[..., Config]) -> None:
    with pytest.raises(DataError, match=r"data.source is missing, so .*; each corpus of data.mixture is prepared by a"):
        prepare(mixed())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "data: give either dir, the folder of one corpus, or mixture"),
        ({"dir": "a", "mixture": [{"dir": "b", "weight": 1}]}, "data: give either dir, the folder of one corpus"),
        ({"mixture": [{"dir": "b", "weight": 1}], "source": {"path": "x"}}, "data: source belongs to the one corpus"),
        (
            {"mixture": [{"dir": "x/b", "weight": 1}, {"dir": "y/b", "weight": 1}]},
            r"data: two corpora of the mixture are called the same \(b, b\); give them names",
        ),
    ],
)
def test_a_config_has_either_a_corpus_or_a_mixture(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({"run": {"dir": "r"}, "data": data, "train": {"steps": 1}})


def test_a_corpus_without_a_window_to_train_on_is_named(mixed: Any, corpora: list[Path]) -> None:
    cfg = mixed()
    longer = cfg.model_copy(update={"model": cfg.model.model_copy(update={"context_length": 301})})
    with pytest.raises(DataError, match=rf"^{corpora[0]}: its train split holds 301 tokens, and one window"):
        check_corpora(open_corpora(cfg), longer)
