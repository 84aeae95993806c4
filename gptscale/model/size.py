"""How large a model is and what a token costs, worked out from its config alone. Imports no torch."""

import math
from dataclasses import dataclass

from gptscale.config.schema import ModelConfig

VOCABULARY_MULTIPLE = 64
"""The vocabulary is padded to a multiple of this inside, which matrix units like; no user sees the padding."""

LOGITS_PER_CHUNK = 2**27
"""Logits that exist at one time: 512 MiB in float32."""


def padded_vocab_size(vocab_size: int) -> int:
    """The rows that the embedding and the head really have."""
    return math.ceil(vocab_size / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


FP16_ROWS = 2**13
"""Rows of logits at one time in fp16, whose gradient by the weights is a sum over them before the loss scale is in."""


def rows_per_chunk(tokens: int, vocab: int, *, fp16: bool = False) -> int:
    """Rows of logits that are computed at a time: LOGITS_PER_CHUNK at most, in chunks of one size where some divide.

    torch.compile makes code for each size.
    """
    most = max(1, LOGITS_PER_CHUNK // vocab)
    fewest = max(1, math.ceil(tokens / (min(most, FP16_ROWS) if fp16 else most)))
    chunks = next((chunks for chunks in range(fewest, 2 * fewest) if tokens % chunks == 0), fewest)
    return max(1, math.ceil(tokens / chunks))


@dataclass(frozen=True)
class ModelSize:
    """Elements of the parameters of a GPTModel, the vocabulary's padding among them."""

    layers: int
    block_matrices: int
    """Of one block: query, key and value, the two projections onto the stream, the wide layer."""
    block_vectors: int
    """Of one block: biases and norms."""
    outside: int
    """Embeddings, the last norm, and the head where it is not the embedding."""
    padding: int
    """Rows of the vocabulary that no token has."""

    @property
    def block(self) -> int:
        """One block."""
        return self.block_matrices + self.block_vectors

    @property
    def total(self) -> int:
        """All that memory and checkpoints hold."""
        return self.layers * self.block + self.outside

    @property
    def parameters(self) -> int:
        """What is called the model's number of parameters: all but the padding."""
        return self.total - self.padding


def model_size(cfg: ModelConfig) -> ModelSize:
    """Count the elements that a GPTModel of this config has."""
    width, vocab = cfg.emb_dim, padded_vocab_size(cfg.vocab_size)
    tables = 1 if cfg.tie_embeddings else 2
    norm = width * (2 if cfg.norm_bias else 1)
    biases = (3 * width if cfg.qkv_bias else 0) + width + 4 * width + width
    return ModelSize(
        layers=cfg.n_layers,
        block_matrices=12 * width**2,
        block_vectors=2 * norm + biases,
        outside=(tables * vocab + cfg.context_length) * width + norm,
        padding=tables * (vocab - cfg.vocab_size) * width,
    )


def flops_per_token(cfg: ModelConfig) -> int:
    """Floating-point operations to train on one token: forward and backward, nothing recomputed.

    6 for each weight of a matrix product plus 12 n_layers emb_dim context_length for attention,
    counted without the causal mask (Chowdhery et al. 2022, PaLM, appendix B). Looking up an
    embedding costs nothing; the head is a matrix product whether tied or not.
    """
    matmul_weights = 12 * cfg.n_layers * cfg.emb_dim**2 + cfg.vocab_size * cfg.emb_dim
    return 6 * matmul_weights + 12 * cfg.n_layers * cfg.emb_dim * cfg.context_length


def recomputed_flops_per_token(cfg: ModelConfig) -> int:
    """What `train.activation_checkpointing` adds: the forward pass of the blocks once more, a third of their cost."""
    return 24 * cfg.n_layers * cfg.emb_dim**2 + 4 * cfg.n_layers * cfg.emb_dim * cfg.context_length
