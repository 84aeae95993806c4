"""Arithmetic of a model: what a token costs."""

from gptscale.config.schema import ModelConfig


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
