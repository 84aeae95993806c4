"""The tokenizer of a trained model."""

from gptscale.config.schema import Config
from gptscale.data.tokenizer import Tokenizer, load_tokenizer
from gptscale.errors import WeightsError


def own_tokenizer(cfg: Config) -> Tokenizer:
    """The tokenizer of a model's config; raises WeightsError for one with ids that the model cannot know.

    An import takes gpt2 where none is said, and padding of the vocabulary would take some of its ids without a word.
    """
    tokenizer = load_tokenizer(cfg.data.tokenizer)
    if tokenizer.n_vocab > cfg.model.vocab_size:
        raise WeightsError(
            f"tokenizer {tokenizer.name} has {tokenizer.n_vocab} tokens, but model.vocab_size={cfg.model.vocab_size}; "
            "data.tokenizer is not the one that the model was trained with: import its weights again with "
            "data.tokenizer=..."
        )
    return tokenizer
