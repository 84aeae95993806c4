"""The split of documents."""

import numpy as np
import pytest
from xxhash import xxh3_64_intdigest

from gptscale.config.data import DataConfig
from gptscale.data.split import Documents, is_held_out, split_documents, tail_cut
from gptscale.data.texts import list_texts, to_list


def config(**fields: object) -> DataConfig:
    return DataConfig.model_validate({"dir": "corpus", "source": {"path": "x.txt"}, **fields})


def split(texts: list[str], cfg: DataConfig) -> list[list[tuple[int, str]]]:
    """The rows and texts of both sides."""
    sides = split_documents(Documents(np.arange(len(texts)), list_texts(texts)), cfg)
    return [list(zip(side.rows.tolist(), to_list(side.texts), strict=True)) for side in sides]


def test_tail_keeps_the_end_of_every_document() -> None:
    cfg = config(split="tail", validation_fraction=0.1)
    assert split(["0123456789", "", "é" * 20, "x"], cfg) == [
        [(0, "012345678"), (2, "é" * 18)],
        [(0, "9"), (2, "éé"), (3, "x")],
    ]


def test_the_cut_is_where_the_book_cuts() -> None:
    assert tail_cut(20479, 0.1) == 18431
    lengths = range(20_000)
    assert [tail_cut(n, 0.1) for n in lengths] == [int(0.9 * n) for n in lengths]


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.7, 0.005])
def test_the_cut_has_no_rounding_error(fraction: float) -> None:
    permille = round(1000 * fraction)
    assert [tail_cut(n, fraction) for n in range(3000)] == [n * (1000 - permille) // 1000 for n in range(3000)]


def test_hash_keeps_a_document_whole_and_by_its_text_alone() -> None:
    cfg = config(validation_fraction=0.5)
    texts = [str(i) for i in range(100)]
    train, val = split(texts, cfg)
    assert sorted(train + val) == list(enumerate(texts))
    again = split(texts[::-1], cfg)
    assert [sorted(text for _, text in side) for side in again] == [sorted(t for _, t in side) for side in (train, val)]


@pytest.mark.parametrize("seed", [0, 7])
def test_hash_goes_by_the_configs_seed_and_fraction(seed: int) -> None:
    texts = [f"text {i}" for i in range(100)]
    held = [xxh3_64_intdigest(text.encode(), seed) < 2**64 // 4 for text in texts]
    train, val = split(texts, config(validation_fraction=0.25, split_seed=seed))
    assert val == [(i, text) for i, text in enumerate(texts) if held[i]]
    assert len(train) == 100 - sum(held)


def test_hash_holds_out_the_asked_share_and_another_seed_holds_out_others() -> None:
    held = np.array([[is_held_out(b"%d" % i, seed, 0.1) for i in range(20_000)] for seed in (0, 1)])
    # 20,000 draws at 0.1: mean 2000, standard deviation 42; both at once: mean 200, standard deviation 14
    assert np.abs(held.sum(1) - 2000).max() < 4 * 42
    assert abs((held[0] & held[1]).sum() - 200) < 4 * 14


def test_the_held_out_documents_never_change_silently() -> None:
    assert [i for i in range(40) if is_held_out(b"%d" % i, 0, 0.1)] == [0, 7, 14, 25, 29, 37]


def test_a_fraction_of_zero_holds_nothing_out() -> None:
    assert not any(is_held_out(b"%d" % i, 0, 0.0) for i in range(1000))
    for how in ("tail", "hash"):
        assert split(["abc", ""], config(split=how, validation_fraction=0)) == [[(0, "abc")], []]
