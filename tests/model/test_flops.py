from gptscale.config.schema import ModelConfig
from gptscale.model.flops import flops_per_token, recomputed_flops_per_token


def test_flops_of_gpt2_small_equal_the_count_on_paper() -> None:
    # Matrices: 12 layers * 12 * 768^2 = 84,934,656; head 50,257 * 768 = 38,597,376; 6 * sum = 741,192,192.
    # Attention: 12 * 12 * 768 * 1024 = 113,246,208.
    assert flops_per_token(ModelConfig(preset="124M")) == 741_192_192 + 113_246_208


def test_computing_the_blocks_again_is_a_third_of_what_they_cost() -> None:
    # Without the head: 6 * 84,934,656 for the matrices and 113,246,208 for attention, of which a third is forward.
    assert recomputed_flops_per_token(ModelConfig(preset="124M")) == (6 * 84_934_656 + 113_246_208) // 3
