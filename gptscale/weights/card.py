"""The model card of an export."""

from collections.abc import Mapping

from gptscale.config.schema import Config

CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [gpt2, gptscale]
---

# {name}

A GPT-2-family language model with {parameters:,} parameters, written by gptscale {version}.

| model | |
| --- | --- |
| layers, heads, width | {layers}, {heads}, {width} |
| context | {context:,} tokens |
| vocabulary | {vocabulary:,} tokens of the tokenizer `{tokenizer}` |

| training | |
| --- | --- |
{rows}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH")
tokenizer = AutoTokenizer.from_pretrained("PATH")
```
"""


def model_card(cfg: Config, name: str, parameters: int, version: str, training: Mapping[str, str]) -> str:
    """A README.md; training says what is known of it, such as data, steps and losses."""
    return CARD.format(
        name=name,
        parameters=parameters,
        version=version,
        layers=cfg.model.n_layers,
        heads=cfg.model.n_heads,
        width=cfg.model.emb_dim,
        context=cfg.model.context_length,
        vocabulary=cfg.model.vocab_size,
        tokenizer=cfg.data.tokenizer,
        rows="\n".join(f"| {what} | {value} |" for what, value in training.items()),
    )
