"""Writing text: with the cache against without, and against transformers' generate with its cache, side by side.

    python benchmarks/generate.py                      # GPT-2 124M's shape, 512 tokens
    python benchmarks/generate.py --preset 350M --rounds 3
    python benchmarks/generate.py --emb-dim 64 --n-layers 2 --n-heads 4 --new-tokens 64   # small, to try it

Random weights, one prompt of 16 tokens, greedy, float32 unless told otherwise, the same weights for all. The ways
take turns in every round and medians are compared, so that what else the machine does falls on all of them. Without the
cache takes minutes, so it takes part in the first rounds only. Exits with 1 where the cache is worth less than 5 times,
transformers is faster, or the ways write different tokens, as they may in bfloat16, where two logits can be equal.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from mistakes import positive, told
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from gptscale.config.presets import GPT2_SIZES
from gptscale.config.schema import ModelConfig
from gptscale.data.tokenizer import load_tokenizer
from gptscale.generation.decode import Decoder
from gptscale.generation.layout import by_columns
from gptscale.generation.sampling import Sampling
from gptscale.model.gpt import GPTModel
from gptscale.runtime.device import describe_device, local_device, synchronize
from gptscale.weights.export import write_transformers
from gptscale.weights.source import Source, Stored

PROMPT_TOKENS = 16
Way = Callable[[], list[int]]


def main() -> int:
    """Measure and compare; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=GPT2_SIZES, default="124M")
    for name in ("emb-dim", "n-layers", "n-heads"):
        parser.add_argument(f"--{name}", type=positive, help="another shape than the preset's")
    parser.add_argument("--new-tokens", type=positive, default=512)
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--uncached-rounds", type=positive, default=1)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    asked = parser.parse_args()
    shape = {name: getattr(asked, name) for name in ("emb_dim", "n_layers", "n_heads") if getattr(asked, name)}
    cfg = ModelConfig(preset=asked.preset if len(shape) < 3 else None, **shape)
    if PROMPT_TOKENS + asked.new_tokens > cfg.context_length:
        parser.error(f"--new-tokens can be {cfg.context_length - PROMPT_TOKENS} at most")
    device, dtype = local_device(), getattr(torch, asked.dtype)
    model = by_columns(GPTModel(cfg, seed=0).to(device, dtype).eval())
    prompt = torch.randint(cfg.vocab_size, (PROMPT_TOKENS,), generator=torch.Generator().manual_seed(0)).tolist()
    ways: dict[str, Way] = {
        "cached": lambda: ours(model, prompt, asked.new_tokens),
        "transformers": theirs(model, prompt, asked.new_tokens),
        "uncached": lambda: uncached(model, prompt, asked.new_tokens),
    }
    print(f"{model.num_parameters():,} parameters, {asked.new_tokens} tokens, {asked.dtype}, {describe_device(device)}")
    seconds, same = measure(ways, device, asked.rounds, asked.uncached_rounds)
    good = compare({name: statistics.median(s) for name, s in seconds.items()}, asked.new_tokens)
    print(f"the ways wrote {'the same' if same else 'DIFFERENT'} tokens")
    return 0 if good and same else 1


def ours(model: GPTModel, prompt: list[int], new_tokens: int) -> list[int]:
    """Write with our decoder."""
    decoder = Decoder(model, [prompt], Sampling(temperature=0), max_new_tokens=new_tokens)
    while decoder.growing:
        decoder.step()
    return decoder.rows[0]


def uncached(model: GPTModel, prompt: list[int], new_tokens: int) -> list[int]:
    """Write by reading the whole text again for every token."""
    text = torch.tensor([prompt], device=model.tok_emb.weight.device)
    for _ in range(new_tokens):
        with torch.no_grad():
            last = torch.tensor([text.shape[1] - 1], device=text.device)
            text = torch.cat([text, model(text, at=last).argmax(-1, keepdim=True)], dim=1)
    return text[0].tolist()


def theirs(model: GPTModel, prompt: list[int], new_tokens: int) -> Way:
    """A way to write with transformers, from an export of the same weights."""
    logging.disable_progress_bar()
    tensors = {
        name: Stored(tuple(p.shape), lambda p=p: p.detach().cpu().float()) for name, p in model.named_parameters()
    }
    source = Source("benchmark", "gptscale", {}, tensors)
    with tempfile.TemporaryDirectory() as folder:
        write_transformers(Path(folder), source, model.cfg, load_tokenizer("gpt2"), "float32", part_bytes=10**10)
        other = AutoModelForCausalLM.from_pretrained(folder, dtype=model.tok_emb.weight.dtype)
    other = other.to(model.tok_emb.weight.device).eval()
    tokens = torch.tensor([prompt], device=other.device)
    length = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}

    def write() -> list[int]:
        out = other.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            pad_token_id=50256,
            eos_token_id=None,
            **length,
        )
        return out[0].tolist()

    return write


def measure(
    ways: dict[str, Way], device: torch.device, rounds: int, uncached_rounds: int
) -> tuple[dict[str, list[float]], bool]:
    """Seconds of every way in every round that it takes part in, and whether all wrote the same; they take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    texts: dict[str, list[int]] = {name: way() for name, way in ways.items() if name != "uncached"}  # to warm up
    for number in range(rounds):
        for name, way in ways.items():
            if name == "uncached" and number >= uncached_rounds:
                continue
            synchronize(device)
            start = time.perf_counter()
            texts[name] = way()
            synchronize(device)
            seconds[name].append(time.perf_counter() - start)
            print(f"round {number + 1}  {name:12} {seconds[name][-1]:8.2f} s", flush=True)
    return seconds, len({tuple(text) for text in texts.values()}) == 1


def compare(medians: dict[str, float], new_tokens: int) -> bool:
    """Print the ratios; whether the cache is worth 5 times and ours is at least as fast as theirs."""
    for name, median in medians.items():
        print(f"{name:12} median {median:8.2f} s, {new_tokens / median:8.1f} tokens/s")
    over_uncached = medians["uncached"] / medians["cached"]
    over_theirs = medians["transformers"] / medians["cached"]
    print(f"cached is {over_uncached:.1f} x as fast as uncached, and {over_theirs:.2f} x as fast as transformers")
    return over_uncached >= 5 and over_theirs >= 1


if __name__ == "__main__":
    raise SystemExit(told(main))
