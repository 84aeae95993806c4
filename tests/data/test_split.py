"""The split of documents."""

import numpy as np
import pytest

from gptscale.config.schema import DataConfig
from gptscale.data.split import is_held_out, split_text, tail_cut


def config(**fields: object) -> DataConfig:
    return DataConfig.model_validate({"dir": "corpus", "source": {"path": "x.txt"}, **fields})


def test_tail_keeps_the_end_of_every_document() -> None:
    cfg = config(split="tail", validation_fraction=0.1)
    assert split_text("0123456789", b"0123456789", cfg) == ("012345678", "9")
    assert split_text("", b"", cfg) == ("", "")


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
    sides = {text: split_text(text, text.encode(), cfg) for text in map(str, range(100))}
    assert all(side in [(text, ""), ("", text)] for text, side in sides.items())
    assert sides == {text: split_text(text, text.encode(), cfg) for text in reversed(sides)}


def test_hash_holds_out_the_asked_share_and_another_seed_holds_out_others() -> None:
    held = np.array([[is_held_out(b"%d" % i, seed, 0.1) for i in range(20_000)] for seed in (0, 1)])
    # 20,000 draws at 0.1: mean 2000, standard deviation 42; both at once: mean 200, standard deviation 14
    assert np.abs(held.sum(1) - 2000).max() < 4 * 42
    assert abs((held[0] & held[1]).sum() - 200) < 4 * 14


def test_the_held_out_documents_never_change_silently() -> None:
    assert [i for i in range(40) if is_held_out(b"%d" % i, 0, 0.1)] == [10, 19]


def test_a_fraction_of_zero_holds_nothing_out() -> None:
    assert not any(is_held_out(b"%d" % i, 0, 0.0) for i in range(1000))
    assert split_text("abc", b"abc", config(split="tail", validation_fraction=0)) == ("abc", "")
