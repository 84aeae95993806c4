"""The four sizes of GPT-2, by the names their authors' checkpoints are known under."""

from typing import Any

GPT2_SIZES: dict[str, dict[str, Any]] = {
    "124M": {"emb_dim": 768, "n_heads": 12, "n_layers": 12},
    "350M": {"emb_dim": 1024, "n_heads": 16, "n_layers": 24},
    "774M": {"emb_dim": 1280, "n_heads": 20, "n_layers": 36},
    "1558M": {"emb_dim": 1600, "n_heads": 25, "n_layers": 48},
}
