"""Buffers, counted on paper."""

from collections.abc import Callable

import pytest

from gptscale.config.schema import Config
from gptscale.planning.launch import Launch
from gptscale.planning.state import model_state

TOTAL = 1_557_611_200 + 47 * 1600
"""GPT-2 XL's parameters, and the rows that pad its vocabulary to 50,304."""


@pytest.mark.parametrize(
    ("engine", "precision", "bytes_"),
    [
        ("ddp", "bf16", 4 * TOTAL),  # the first step of a process adds micro-batches up beside the buckets
        ("zero1", "bf16-sharded", 4 * 500_000_000),  # deepspeed/runtime/engine.py: MEMORY_OPT_ALLREDUCE_SIZE
        ("zero1", "bf16", 4 * 50_000_000),  # our reduce_bucket_size
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
