"""Reading with a cache gives the logits of reading without."""

from collections.abc import Iterator

import pytest
import torch

from gptscale.config.schema import ModelConfig
from gptscale.model.cache import KVCache
from gptscale.model.gpt import GPTModel

CFG = ModelConfig(vocab_size=50, context_length=20, emb_dim=32, n_heads=4, n_layers=3)


@pytest.fixture(scope="module")
def model() -> GPTModel:
    model = GPTModel(CFG, seed=2).eval()
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        p.data.normal_(0.0, 0.3, generator=generator)
    return model


@torch.no_grad()
def read(model: GPTModel, rows: list[list[int]], cut: list[int]) -> tuple[KVCache, torch.Tensor]:
    """Read the first tokens of each row into a cache; gives the logits after them too."""
    first = [torch.tensor(row[:n]) for row, n in zip(rows, cut, strict=True)]
    tokens = torch.nn.utils.rnn.pad_sequence(first, batch_first=True, padding_value=49)
    cache = KVCache(cut, CFG.n_layers, CFG.context_length)
    return cache, model(tokens, at=torch.tensor(cut) - 1, cache=cache)


@torch.no_grad()
def uncached(model: GPTModel, row: list[int]) -> torch.Tensor:
    return model(torch.tensor([row]))[0, -1]


ROWS = torch.randint(50, (3, 20), generator=torch.Generator().manual_seed(3)).tolist()


@pytest.mark.parametrize("cut", [[6, 6, 6], [9, 1, 4]], ids=["even", "ragged"])
def test_each_token_has_the_logits_of_its_row_read_anew(model: GPTModel, cut: list[int]) -> None:
    cache, logits = read(model, ROWS, cut)
    for more in range(11):
        for row, n, found in zip(ROWS, cut, logits, strict=True):
            torch.testing.assert_close(found, uncached(model, row[: n + more]), atol=1e-5, rtol=1e-5)
        cache.next_pass(torch.device("cpu"))
        new = torch.tensor([[row[n + more]] for row, n in zip(ROWS, cut, strict=True)])
        with torch.no_grad():
            logits = model(new, cache=cache)[:, -1]


@pytest.fixture
def undefined_is_nan() -> Iterator[None]:
    """New memory holds NaN where nobody has written yet."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(9).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("undefined_is_nan")
@pytest.mark.parametrize("cut", [[6, 6, 6], [9, 1, 4]], ids=["even", "ragged"])
@pytest.mark.parametrize("chosen", [[2, 0], [1, 1, 0], [0, 0, 2, 1, 1]])
def test_rows_can_be_left_out_put_in_order_and_doubled(model: GPTModel, cut: list[int], chosen: list[int]) -> None:
    cache, _ = read(model, ROWS, cut)
    cache.select(chosen)
    assert cache.lengths == [cut[row] for row in chosen]
    for more in range(3):
        if more == 2:  # a row that is left alone is even, whatever the others were
            chosen = chosen[:1]
            cache.select([0])
        cache.next_pass(torch.device("cpu"))
        new = torch.tensor([[ROWS[row][cut[row] + more]] for row in chosen])
        with torch.no_grad():
            logits = model(new, cache=cache)[:, -1]
        for row, found in zip(chosen, logits, strict=True):
            expected = uncached(model, ROWS[row][: cut[row] + more + 1])
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
