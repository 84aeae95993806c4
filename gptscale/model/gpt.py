"""GPTModel. Axes: B sequences, T positions, C width, H heads, D head width, V vocabulary."""

import math
from collections.abc import Iterator
from hashlib import blake2b

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gptscale.config.schema import ModelConfig
from gptscale.model import compiled_cpu
from gptscale.model.cache import KVCache, LayerCache
from gptscale.model.compiled_cpu import is_compiling_for_cpu
from gptscale.model.loss import cross_entropy_by_token, summed_cross_entropy
from gptscale.model.size import model_size, padded_vocab_size


class Attention(nn.Module):
    """Multi-head attention in which a position sees itself and the past."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.n_heads = cfg.n_heads
        self.drop_rate = cfg.drop_rate
        self.qkv = nn.Linear(cfg.emb_dim, 3 * cfg.emb_dim, bias=cfg.qkv_bias)
        self.out_proj = nn.Linear(cfg.emb_dim, cfg.emb_dim)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        """Map (B, T, C) to (B, T, C); with a cache, what was read before is seen too."""
        qkv = self.qkv(x).unflatten(-1, (3, self.n_heads, -1))  # (B, T, 3, H, D)
        drop_rate = self.drop_rate if self.training else 0.0
        if cache is None and not drop_rate and qkv.dtype == torch.bfloat16 and is_compiling_for_cpu(qkv):
            return self.out_proj(compiled_cpu.causal_attention(qkv).flatten(2))  # type: ignore[no-any-return]
        q, k, v = qkv.transpose(1, 3).unbind(2)  # each (B, H, T, D)
        mask, causal = None, True
        if cache is not None:
            k, v, mask, causal = cache.extend(k, v)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, dropout_p=drop_rate)
        return self.out_proj(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]  # heads side by side


class FeedForward(nn.Module):
    """Two linear maps with GELU between, four times as wide inside."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.approximate = "tanh" if cfg.gelu == "tanh" else "none"
        self.fc = nn.Linear(cfg.emb_dim, 4 * cfg.emb_dim)
        self.out_proj = nn.Linear(4 * cfg.emb_dim, cfg.emb_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        wide = self.fc(x)
        if self.approximate == "tanh" and is_compiling_for_cpu(wide):
            wide = compiled_cpu.gelu(wide)
        else:
            wide = F.gelu(wide, approximate=self.approximate)
        return self.out_proj(wide)  # type: ignore[no-any-return]


class Block(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(cfg.emb_dim, bias=cfg.norm_bias)
        self.att = Attention(cfg)
        self.norm2 = nn.LayerNorm(cfg.emb_dim, bias=cfg.norm_bias)
        self.ff = FeedForward(cfg)
        self.drop = nn.Dropout(cfg.drop_rate)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        x = x + self.drop(self.att(self.norm1(x), cache))
        return x + self.drop(self.ff(self.norm2(x)))  # type: ignore[no-any-return]


class Head(nn.Module):
    """The map from the residual stream to logits, or straight to the loss."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.vocab_size = cfg.vocab_size
        self.weight = nn.Parameter(torch.empty(padded_vocab_size(cfg.vocab_size), cfg.emb_dim))

    def forward(self, x: Tensor, targets: Tensor | None = None, by_token: bool = False) -> Tensor:
        """Map (B, T, C) to logits (B, T, V), or with targets (B, T) to their summed loss, or to each one's."""
        if targets is None:
            return F.linear(x, self.weight)[..., : self.vocab_size]
        if by_token:
            losses = cross_entropy_by_token(x.flatten(0, 1), self.weight, targets.flatten(), self.vocab_size)
            return losses.view_as(targets)
        return summed_cross_entropy(x.flatten(0, 1), self.weight, targets.flatten(), self.vocab_size)


class GPTModel(nn.Module):
    """A GPT-2-family language model.

    Weights follow from `seed` alone, the same on every device; null leaves them to be loaded.
    """

    def __init__(self, cfg: ModelConfig, seed: int | None = 0) -> None:
        super().__init__()
        self.cfg = cfg
        self.recompute = False
        """Whether training keeps a block's input only and computes the block again in the backward pass."""
        self.tok_emb = nn.Embedding(padded_vocab_size(cfg.vocab_size), cfg.emb_dim)
        self.pos_emb = nn.Embedding(cfg.context_length, cfg.emb_dim)
        self.drop_emb = nn.Dropout(cfg.drop_rate)
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.n_layers))
        self.final_norm = nn.LayerNorm(cfg.emb_dim, bias=cfg.norm_bias)
        self.out_head = Head(cfg)
        if cfg.tie_embeddings:
            self.tok_emb.weight = self.out_head.weight
        if seed is not None:
            self.init_weights(seed)

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        at: Tensor | None = None,
        cache: KVCache | None = None,
        by_token: bool = False,
    ) -> Tensor:
        """Map token ids (B, T) to logits (B, T, V); T is at most context_length.

        With targets (B, T), gives the summed cross-entropy in nats instead, a float32 scalar;
        targets of -100 do not count. With by_token, gives it for each target, (B, T), without gradients.
        With at (B,), gives the logits (B, V) at one position of each row. With a cache, reads what it is ready
        for and leaves it with these tokens.
        """
        x = self.hidden(tokens, cache)
        if at is not None:
            x = x[torch.arange(len(x), device=x.device), at]
        return self.out_head(x, targets, by_token)  # type: ignore[no-any-return]

    def hidden(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Map token ids (B, T) to the normed residual stream (B, T, C) that the head reads."""
        length = tokens.shape[1]
        if length > self.cfg.context_length:
            raise ValueError(f"{length} tokens do not fit into context_length={self.cfg.context_length}")
        positions = torch.arange(length, device=tokens.device) if cache is None else cache.positions(tokens)
        x = self.drop_emb(self.tok_emb(tokens) + self.pos_emb(positions))
        for number, block in enumerate(self.blocks):
            if self.recompute and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x) if cache is None else block(x, cache.layers[number])
        return self.final_norm(x)  # type: ignore[no-any-return]

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Give each parameter what `seeded_weights` draws."""
        for name, drawn in seeded_weights(self.cfg, seed):
            self.get_parameter(name).copy_(drawn)

    def num_parameters(self) -> int:
        """Parameters without vocabulary padding, of all ranks together; a tied head counts once."""
        return model_size(self.cfg).parameters


def unfilled_model(cfg: ModelConfig) -> GPTModel:
    """A model on the meta device: shapes without weights."""
    with torch.device("meta"):
        return GPTModel(cfg, seed=None)


def seeded_weights(cfg: ModelConfig, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Each parameter's name and first value, on the CPU, drawn from its own stream of (seed, name).

    See `initial_weights`; the padding of the vocabulary is zero.
    """
    for name, p in unfilled_model(cfg).named_parameters():
        drawn = initial_weights(name, p.shape, cfg, _stream(seed, name))
        if name in ("tok_emb.weight", "out_head.weight"):
            drawn[cfg.vocab_size :] = 0
        yield name, drawn


def initial_weights(name: str, shape: torch.Size, cfg: ModelConfig, generator: torch.Generator) -> Tensor:
    """What a parameter starts from: norms with gain 1, biases 0, and matrices as cfg.init says.

    gpt2: normal with deviation 0.02 (positions 0.01), divided by sqrt(2 n_layers) for projections onto
    the residual stream (Radford et al. 2019 and their code). torch: embeddings standard normal, linear
    layers and their biases uniform within 1 / sqrt(inputs), as nn.Embedding and nn.Linear do.
    """
    drawn = torch.empty(shape)
    if "norm" in name:
        return drawn.fill_(float(name.endswith("weight")))
    if cfg.init == "torch" and not name.endswith("emb.weight"):
        inputs = 4 * cfg.emb_dim if "ff.out_proj" in name else cfg.emb_dim
        return drawn.uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)
    if cfg.init == "torch":
        return drawn.normal_(generator=generator)
    if name.endswith("bias"):
        return drawn.zero_()
    std = 0.01 if name == "pos_emb.weight" else 0.02
    return drawn.normal_(0.0, std / math.sqrt(2 * cfg.n_layers) if "out_proj" in name else std, generator=generator)


def _stream(seed: int, name: str) -> torch.Generator:
    digest = blake2b(f"{seed}/{name}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))
