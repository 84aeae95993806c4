"""Randomness as a function of where we are, so that none of it has to be saved."""

import struct
from hashlib import blake2b

import torch


def seed_at(seed: int, step: int, first_position: int) -> int:
    """The seed of one micro-batch's dropout masks, from the run's seed, the step and its first sample.

    It does not depend on the rank or on how many there are: 1 and 64 GPUs draw the same masks.
    """
    key = struct.pack("<3q", seed, step, first_position)
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "little") >> 1


def seed_micro_batch(seed: int, step: int, first_position: int) -> None:
    """Set torch's generators, on every device, for one forward and backward."""
    torch.manual_seed(seed_at(seed, step, first_position))
