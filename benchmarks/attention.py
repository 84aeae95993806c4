"""What a compiled step on a CPU does for attention against torch's kernel, in interleaved rounds.

    python benchmarks/attention.py [--rounds 7]

Milliseconds of forward and backward together, medians, for shapes (sequences, heads, positions) with heads 64 wide.
In bf16 a step takes the matrix products, in float32 the kernel.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from mistakes import positive, told
from torch import Tensor

from gptscale.model.compiled_cpu import causal_attention
from gptscale.runtime.device import describe_device, keeping_freed_memory

SHAPES = ((8, 6, 256), (4, 12, 512), (2, 12, 1024), (1, 12, 2048))
WIDTH = 64


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive, default=7)
    rounds = parser.parse_args().rounds
    cpu = torch.device("cpu")
    print(f"{describe_device(cpu)}, torch {torch.__version__}, {rounds} rounds\n")
    print("| dtype | shape | torch's kernel | matrix products | ratio |\n| --- | --- | --- | --- | --- |")
    with keeping_freed_memory(cpu):  # as in training
        for dtype in (torch.bfloat16, torch.float32):
            for shape in SHAPES:
                kernel, products = compared(shape, dtype, rounds)
                times = f"{kernel:.1f} ms | {products:.1f} ms | {kernel / products:.2f}"
                print(f"| {dtype} | {shape} | {times} |", flush=True)


def compared(shape: tuple[int, int, int], dtype: torch.dtype, rounds: int) -> list[float]:
    """Median milliseconds of torch's kernel and of the matrix products."""
    sequences, heads, positions = shape
    qkv = torch.randn(sequences, positions, 3, heads, WIDTH, dtype=dtype, requires_grad=True)
    grad = torch.randn(sequences, positions, heads, WIDTH, dtype=dtype)
    torch.compiler.reset()  # shapes do not count as one function's many
    ways = [torch.compile(way, dynamic=False) for way in (kernel_attention, causal_attention)]
    for way in ways:
        milliseconds(way, qkv, grad)
    times = [[milliseconds(way, qkv, grad) for way in ways] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def kernel_attention(qkv: Tensor) -> Tensor:
    """What gptscale does elsewhere."""
    q, k, v = qkv.transpose(1, 3).unbind(2)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def milliseconds(way: Callable[[Tensor], Tensor], qkv: Tensor, grad: Tensor) -> float:
    """Time one forward and backward."""
    began = time.perf_counter()
    torch.autograd.grad(way(qkv), qkv, grad)
    return 1_000 * (time.perf_counter() - began)


if __name__ == "__main__":
    raise SystemExit(told(main))
