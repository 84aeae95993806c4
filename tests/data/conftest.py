"""What the data tests share: a config for a small corpus, and caches that stay inside the test's folder."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

from gptscale.config.load import parse_config
from gptscale.config.schema import Config

MakeConfig = Callable[..., Config]


@pytest.fixture(autouse=True, scope="session")
def _datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield


@pytest.fixture
def make_config(tmp_path: Path) -> MakeConfig:
    """A config of bytes and short contexts; keyword arguments replace sections' fields."""

    def make(path: Path | str, **sections: dict[str, Any]) -> Config:
        source = {"path": str(path), "documents": "line", **sections.get("source", {})}
        data = {
            "dir": tmp_path / "corpus",
            "tokenizer": "bytes",
            "source": source,
            **sections.get("data", {}),
        }
        model = {"context_length": 4, "vocab_size": 257, **sections.get("model", {})}
        train = {"steps": 1, "tokens_per_step": 8, "micro_batch_sequences": 1, **sections.get("train", {})}
        return parse_config({"run": {"dir": tmp_path / "run"}, "data": data, "model": model, "train": train})

    return make
