"""What ranks hold besides activations, counted on paper."""

from collections.abc import Callable

import pytest

from gptscale.config.schema import Config
from gptscale.planning.launch import Launch
from gptscale.planning.memory import memory_of
from gptscale.planning.state import model_state

TOTAL = 1_557_611_200 + 47 * 1600
"""GPT-2 XL's parameters, and the rows that pad its vocabulary to 50,304."""
OUTSIDE = (50_304 + 1_024 + 2) * 1_600
BLOCK = 12 * 1_600**2 + 13 * 1_600
SMALL = 124_439_808 + 47 * 768


@pytest.mark.parametrize(
    ("engine", "precision", "bytes_"),
    [
        ("ddp", "bf16", 4 * TOTAL),  # the first step of a process adds micro-batches up beside the buckets
        ("zero1", "bf16-sharded", 4 * 500_000_000),  # deepspeed/runtime/engine.py: MEMORY_OPT_ALLREDUCE_SIZE
        ("zero1", "bf16", 4 * 50_000_000),  # our reduce_bucket_size
        ("zero3", "bf16", 4 * (100_000_000 + OUTSIDE) + 2 * 4 * 50_000_000),  # gathered; a bucket and its copy
        ("zero3", "bf16-sharded", 2 * (100_000_000 + OUTSIDE) + 2 * 4 * 50_000_000),
        ("fsdp2", "bf16", 4 * (2 * BLOCK + OUTSIDE) + 4 * BLOCK),  # two blocks, and new gradients of one
    ],
)
def test_the_buffers_of_gpt2_xl(gpt2: Callable[..., Config], engine: str, precision: str, bytes_: int) -> None:
    assert model_state(gpt2("1558M", precision=precision), Launch(engine, 8, 1)).buffers == bytes_


@pytest.mark.parametrize(("accumulates", "gradients"), [(True, TOTAL), (False, TOTAL // 8)])
def test_gpus_of_a_machine_share_what_all_share_under_fsdp2(
    gpt2: Callable[..., Config], accumulates: bool, gradients: int
) -> None:
    cfg = gpt2("1558M")  # 512 sequences on 32 GPUs are 16 on each
    found = model_state(cfg, Launch("hsdp", 32, 1 if accumulates else 16))
    assert (found.weights, found.moments) == pytest.approx((4 * TOTAL / 8, 8 * TOTAL / 8))
    assert found.gradients == pytest.approx(4 * gradients)
    assert found.buffers == model_state(cfg, Launch("fsdp2", 32, 1)).buffers


def test_one_micro_batch_has_its_gradients_in_the_buckets_at_once(gpt2: Callable[..., Config]) -> None:
    assert model_state(gpt2("1558M"), Launch("ddp", 512, 1)).buffers == 0


@pytest.mark.parametrize(("precision", "weights"), [("bf16", 4 + 4), ("bf16-sharded", 2 + 4)])
def test_offloaded_state_is_in_the_machines_memory(gpt2: Callable[..., Config], precision: str, weights: int) -> None:
    found = model_state(gpt2(precision=precision), Launch("zero3-offload", 8, 1))
    assert found.host == (weights + 4 + 8) * SMALL // 8  # masters among the weights, gradients, two moments
    assert (found.weights, found.gradients, found.moments) == (0, 0, 0)


def test_a_gpu_has_its_share_of_the_copy_that_a_checkpoint_is_written_from(gpt2: Callable[..., Config]) -> None:
    cfg = gpt2()
    assert memory_of(cfg, Launch("zero2", 8, 1)).host == 12 * SMALL // 8  # weights and two moments
    at_once = cfg.model_copy(update={"checkpoint": cfg.checkpoint.model_copy(update={"background": False})})
    assert memory_of(at_once, Launch("zero2", 8, 1)).host == 0
