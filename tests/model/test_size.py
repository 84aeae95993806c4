import pytest

from gptscale.config.schema import ModelConfig
from gptscale.model.gpt import GPTModel
from gptscale.model.size import flops_per_token, model_size, recomputed_flops_per_token

SMALL = {"vocab_size": 101, "context_length": 24, "emb_dim": 48, "n_heads": 4, "n_layers": 3}


@pytest.mark.parametrize(
    "change", [{}, {"tie_embeddings": False}, {"qkv_bias": False}, {"norm_bias": False}, {"vocab_size": 128}]
)
def test_a_model_has_the_elements_that_its_config_comes_to(change: dict[str, int]) -> None:
    cfg = ModelConfig(**{**SMALL, **change})
    model, size = GPTModel(cfg), model_size(cfg)
    blocks = sum(p.numel() for name, p in model.named_parameters() if name.startswith("blocks."))
    matrices = sum(p.numel() for name, p in model.named_parameters() if name.startswith("blocks.") and p.dim() == 2)
    assert size.total == sum(p.numel() for p in model.parameters())
    assert (size.layers * size.block, size.layers * size.block_matrices) == (blocks, matrices)
    padding = size.total - size.parameters  # 27 rows of width 48 in each table, where the vocabulary is 101
    assert padding == (0 if cfg.vocab_size == 128 else 27 * 48 * (1 if cfg.tie_embeddings else 2))


# Radford et al. 2019 with tied embeddings, as transformers counts them
@pytest.mark.parametrize(
    ("preset", "parameters"),
    [("124M", 124_439_808), ("350M", 354_823_168), ("774M", 774_030_080), ("1558M", 1_557_611_200)],
)
def test_the_sizes_of_gpt2_are_the_published_ones(preset: str, parameters: int) -> None:
    assert model_size(ModelConfig(preset=preset)).parameters == parameters


def test_flops_of_gpt2_small_equal_the_count_on_paper() -> None:
    # Matrices: 12 layers * 12 * 768^2 = 84,934,656; head 50,257 * 768 = 38,597,376; 6 * sum = 741,192,192.
    # Attention: 12 * 12 * 768 * 1024 = 113,246,208.
    assert flops_per_token(ModelConfig(preset="124M")) == 741_192_192 + 113_246_208


def test_computing_the_blocks_again_is_a_third_of_what_they_cost() -> None:
    # Without the head: 6 * 84,934,656 for the matrices and 113,246,208 for attention, of which a third is forward.
    assert recomputed_flops_per_token(ModelConfig(preset="124M")) == (6 * 84_934_656 + 113_246_208) // 3
