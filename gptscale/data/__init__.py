"""From text to training samples: tokenizers, sources, shards, the sample order and the loader."""
