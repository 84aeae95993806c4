"""What a micro-batch keeps in memory between its forward and its backward pass, and what both take beside it.

N tokens of the micro-batch, C width, H heads, L blocks, V padded vocabulary; s and c are the bytes of an element of the
residual stream and of what matrix products read and write: s = c = 4 in fp32, 4 and 2 under autocast (bf16, fp16), 2
and 2 in bf16-sharded.

Autograd keeps, for each token and block (a storage that two operations need counts once):

    the input of each of two norms            2 s C         and its mean and deviation, 2 * 8
    what the four linear layers read          c (C + C + C + 4C): both norms' outputs, attention's, GELU's
    what attention reads                      3 c C         query, key and value are views of one tensor
    attention's log of sums                   4 H           its weights are computed again, by every fused kernel
    what GELU reads                           4 c C
    two dropout masks                         2 C           where drop_rate is not zero

together C (2 s + 14 c) + 16 + 4 H and the masks: 64 C in fp32, 36 C in bf16, 32 C in bf16-sharded. Beside the blocks it
keeps the last norm's input, the gradient of its output, which the loss computes in the forward pass (model/loss.py),
the token's id, and the mask of the embeddings. Under autocast the linear layers also keep 16-bit copies of their
weights, 2 bytes for each, however small the micro-batch is. A block that is computed again keeps its input only, s C.
torch.compile keeps as much (seen on a CPU); only a chunk of logits has nothing beside it then.

Two moments are fuller than that. While the loss is computed there are also the last norm's output (twice under
autocast), the chunks of logits, the gradient of the head's weight and, under autocast, that weight in 16 bits.
While a block is differentiated there are the gradients of its output and of GELU's output, s C + 4 c C for each token,
the largest gradient of a weight before it is added to its sum, and if the block is computed again, all that it keeps.
"""

from dataclasses import dataclass

from gptscale.config.schema import Config
from gptscale.model.size import model_size, padded_vocab_size, rows_per_chunk


@dataclass(frozen=True)
class Activations:
    """Bytes of one micro-batch on one GPU."""

    kept: int
    """From the forward to the backward pass."""
    loss: int
    """Beside these while the loss is computed."""
    block: int
    """Beside these while a block is differentiated."""


def activations(cfg: Config, sequences: int, *, copies_stay: bool = True) -> Activations:
    """What a micro-batch of so many sequences takes.

    copies_stay says whether autocast holds the 16-bit copies of weights until the loss even where blocks are computed
    again, as its cache does.
    """
    model, tokens = cfg.model, sequences * cfg.model.context_length
    stream, compute = _element_bytes(cfg)
    masks = 1 if model.drop_rate else 0
    width, size = model.emb_dim, model_size(model)
    block = width * (2 * stream + 14 * compute + 2 * masks) + 16 + 4 * model.n_heads
    ends = width * (stream + compute + masks) + 8 + 8
    copies = 2 * size.layers * size.block_matrices if stream != compute else 0
    differentiated = tokens * width * (stream + 4 * compute) + 4 * width**2 * _gradient_bytes(cfg)
    if cfg.train.activation_checkpointing:
        return Activations(
            kept=tokens * (model.n_layers * width * stream + ends),
            loss=_loss_bytes(cfg, tokens) + (copies if copies_stay else 0),
            block=differentiated + tokens * (block - width * stream) + copies // size.layers,
        )
    return Activations(
        kept=tokens * (model.n_layers * block + ends) + copies,
        loss=_loss_bytes(cfg, tokens),
        block=differentiated,
    )


def _element_bytes(cfg: Config) -> tuple[int, int]:
    """Of the residual stream, and of what matrix products read and write."""
    return {"fp32": (4, 4), "bf16-sharded": (2, 2)}.get(cfg.train.precision, (4, 2))


def _gradient_bytes(cfg: Config) -> int:
    """Of a new gradient of a weight; under autocast it comes in 16 bits and is cast."""
    stream, compute = _element_bytes(cfg)
    return compute if stream == compute else compute + 4


def _loss_bytes(cfg: Config, tokens: int) -> int:
    stream, compute = _element_bytes(cfg)
    copy = compute if stream != compute else 0  # that autocast makes
    vocab, width = padded_vocab_size(cfg.model.vocab_size), cfg.model.emb_dim
    beside = 0 if cfg.train.compile else (4 if compute == 4 else 8) * cfg.model.vocab_size
    return (
        tokens * width * (stream + copy)
        + vocab * width * copy
        + _head_bytes(
            vocab, width, compute, beside, tokens, rows_per_chunk(tokens, vocab, fp16=cfg.train.precision == "fp16")
        )
    )


def _head_bytes(vocab: int, width: int, compute: int, beside: int, tokens: int, rows: int) -> int:
    """A chunk of logits and the gradient of the head's weight at their fullest.

    beside is for each row of a chunk: unless it is compiled, the exponentials of its words in fp32, without padding,
    and from 16 bits their logits too. Of several chunks each one's part of the gradient is added to a sum in fp32.
    """
    part = vocab * width * compute
    logits = vocab * rows * compute
    if rows >= tokens:
        return logits + part + beside * rows
    return logits + vocab * width * 4 + max(part, beside * rows)
