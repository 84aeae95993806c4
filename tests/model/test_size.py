import pytest

from gptscale.config.schema import ModelConfig
from gptscale.model.gpt import GPTModel
from gptscale.model.size import model_size

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
    assert size.parameters == model.num_parameters()


# Radford et al. 2019 with tied embeddings, as transformers counts them
@pytest.mark.parametrize(
    ("preset", "parameters"),
    [("124M", 124_439_808), ("350M", 354_823_168), ("774M", 774_030_080), ("1558M", 1_557_611_200)],
)
def test_the_sizes_of_gpt2_are_the_published_ones(preset: str, parameters: int) -> None:
    assert model_size(ModelConfig(preset=preset)).parameters == parameters
