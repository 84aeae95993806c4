"""gptscale adopt: a corpus of token files that others made."""

from pathlib import Path
from typing import Annotated

import typer


def run_adopt(
    corpus: Annotated[Path, typer.Argument(metavar="CORPUS", help="The folder for the manifest: data.dir of a run.")],
    train: Annotated[list[str], typer.Option(help="A token file, or a pattern in quotes; may be given several times.")],
    val: Annotated[list[str], typer.Option(help="The same for validation.")],
    tokenizer: Annotated[str, typer.Option(help="What the ids are of.")] = "gpt2",
) -> None:
    """Make a corpus of nanoGPT's, llm.c's or Megatron-LM's token files, which stay where they are."""
    from gptscale.data.adopt import adopt

    adopt(corpus, train, val, tokenizer)
