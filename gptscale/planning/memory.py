"""Memory of one GPU: the state, what a micro-batch keeps, and how large a micro-batch may be."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

from gptscale.config.schema import Config
from gptscale.planning.activations import activations
from gptscale.planning.checkpoints import checkpoint_bytes
from gptscale.planning.launch import Launch
from gptscale.planning.state import model_state
from gptscale.runtime.gpus import Gpu

USABLE_SHARE = 0.9
"""Of a GPU's memory; the rest is for CUDA's context, NCCL, error correction and the allocator's gaps."""

SAFE_SHARE = 0.8
"""What micro_batch_sequences: auto goes by, since nobody looks at a plan before."""

GIB = 2**30

CPU = "cpu"
"""The name of the processor of a run without GPUs, which `rates.processor` makes."""


@dataclass(frozen=True)
class Memory:
    """Bytes at the fullest moment of a step, all on one GPU but for the last."""

    weights: int
    gradients: int
    moments: int
    activations: int
    """What a micro-batch keeps for its backward pass, and what a block's backward pass takes beside it."""
    logits: int
    """What computing the loss takes beside what is kept, as far as that is more than a block's backward pass takes."""
    buffers: int
    """Of the engine."""
    host: int
    """In the memory of the machine, for this GPU."""

    @property
    def total(self) -> int:
        """On the GPU."""
        return sum(getattr(self, f.name) for f in fields(self) if f.name != "host")

    def needed(self, gpu: Gpu) -> int:
        """What counts against a GPU's memory: for a CPU the machine's too, which is the same."""
        return self.total + (self.host if gpu.name == CPU else 0)

    def largest(self, gpu: Gpu) -> str:
        """What takes most of that."""
        counted = (f.name for f in fields(self) if f.name != "host" or gpu.name == CPU)
        return max(counted, key=lambda name: getattr(self, name))


def memory_of(cfg: Config, launch: Launch) -> Memory:
    """Add up one GPU's memory.

    Gradients and activations count in full at once, as they are from a step's second micro-batch on. The machine's
    memory holds the copy that a checkpoint is written from.
    """
    state = model_state(cfg, launch)
    copy = -(-checkpoint_bytes(cfg) // launch.gpus) if cfg.checkpoint.background else 0
    cached = not launch.is_fsdp2 and cfg.train.precision != "fp16"  # runtime/engine.py: else no cache of casts
    kept = activations(cfg, launch.micro_batch_sequences, copies_stay=cached)
    return Memory(
        **vars(replace(state, host=state.host + copy)),
        activations=kept.kept + kept.block,
        logits=max(0, kept.loss - kept.block),
    )


def usable_bytes(cfg: Config, gpu: Gpu) -> int:
    """What a run may take of a GPU's memory."""
    share = SAFE_SHARE if cfg.train.micro_batch_sequences is None else USABLE_SHARE
    return int(share * gpu.memory_gib * GIB)


def fits(cfg: Config, launch: Launch, gpu: Gpu) -> bool:
    """Whether a GPU has the memory for its share of a run."""
    return memory_of(cfg, launch).needed(gpu) <= usable_bytes(cfg, gpu)


def largest_micro_batch(cfg: Config, launch: Launch, gpu: Gpu) -> int:
    """The largest power of two of sequences that fits and that a step can use; 0 where none fits."""
    return max(fitting_micro_batches(cfg, launch, gpu), default=0)


def fitting_micro_batches(cfg: Config, launch: Launch, gpu: Gpu) -> list[int]:
    """The powers of two of sequences that fit and that a step can use, ascending."""
    return powers_with(cfg, launch, lambda place: fits(cfg, place, gpu))


def powers_with(cfg: Config, launch: Launch, fits: Callable[[Launch], bool]) -> list[int]:
    """The powers of two of sequences that a step can use and with which a launch fits.

    Where larger ones fit, smaller ones need not: with a single micro-batch a step needs less beside it.
    """
    usable = -(-cfg.sequences_per_step // launch.gpus)
    powers = [1 << n for n in range(usable.bit_length())]
    return [n for n in powers if fits(replace(launch, micro_batch_sequences=n))]
