"""gptscale import: other people's weights, or their trainings with the optimizer's state, as a checkpoint."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptscale.cli.arguments import Overrides
from gptscale.cli.new_folder import new_folder
from gptscale.errors import ConfigError, DataError, WeightsError

if TYPE_CHECKING:
    from gptscale.config.schema import Config
    from gptscale.weights.source import Source

GPT2_TOKENS = 50257


def run_import(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="With --to: gpt2, gpt2-medium, -large, -xl, a Hub name, a folder or a file of weights. "
            "With --into: a folder of Accelerate's save_state, or a ZeRO checkpoint.",
        ),
    ],
    to: Annotated[Path | None, typer.Option(help="The checkpoint folder to make of weights.")] = None,
    into: Annotated[
        Path | None, typer.Option(metavar="CONFIG", help="The config of a run that is to go on with AdamW's state too.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Make a checkpoint of GPT-2's weights, the book's or nanoGPT's; or of a training that others saved."""
    from gptscale.config.load import load_config
    from gptscale.training.migrate import import_state

    if (to is None) == (into is None):
        raise ConfigError("import needs --to DIR for weights alone, or --into CONFIG for weights and AdamW's state")
    if to is not None:
        import_weights(source, to, overrides or ())
    if into is not None:
        path = import_state(load_config(into, overrides or ()), Path(source))
        print(f"{source} is now {path}; `gptscale train {into}` goes on from there")


def import_weights(source: str, to: str | Path, overrides: Any = ()) -> "Config":
    """Read weights, check them, and write them as a checkpoint of step 0 into a new folder; gives its config.

    Raises WeightsError if they are not GPT-2's family, not whole, or not finite; nothing is left then.
    """
    from gptscale.checkpoint.imported import write_imported
    from gptscale.checkpoint.source import open_weights
    from gptscale.weights.gpt2 import check_source, notes_on, read_parameters

    to = Path(to)
    with new_folder(to) as folder:
        found = open_weights(source)
        cfg = _config(found, to, overrides)
        _check_tokenizer(found, cfg)
        check_source(found, cfg.model)
        write_imported(folder, cfg, read_parameters(found, cfg.model))
        lines = _check(found, cfg, folder)
    for line in [*notes_on(found, cfg.model), *lines, f"checkpoint: {to}"]:
        print(line)
    return cfg


def _config(found: "Source", to: Path, overrides: Any) -> "Config":
    """A config that says the model; its data and length are placeholders, since there was no training here."""
    from gptscale.config.load import lay_over, parse_config

    values: dict[str, Any] = {
        "run": {"dir": str(to)},
        "model": dict(found.fields),
        "data": {
            "dir": str(to / "corpus"),
            "source": {"path": found.origin},
            **({"tokenizer": found.tokenizer} if found.tokenizer else {}),
        },
        "train": {"steps": 1},
    }
    values = lay_over(values, overrides)
    model, train = values["model"], values["train"]
    if isinstance(model, dict) and "n_heads" not in model:
        raise WeightsError(
            f"{found.origin} does not say how many heads its emb_dim={found.fields['emb_dim']} is divided into; "
            "give model.n_heads=..."
        )
    if isinstance(model, dict) and isinstance(train, dict) and isinstance(model.get("context_length"), int):
        train.setdefault("tokens_per_step", 8 * model["context_length"])
    return parse_config(values, f"import {found.origin}")


def _check_tokenizer(found: "Source", cfg: "Config") -> None:
    """Raise WeightsError for a tokenizer that every verb would fail with later."""
    from gptscale.data.tokenizer import load_tokenizer

    try:
        load_tokenizer(cfg.data.tokenizer)
    except DataError as error:
        raise WeightsError(f"{found.origin}: {error}; give data.tokenizer=... to name the model's own") from None


def _check(found: "Source", cfg: "Config", folder: Path) -> list[str]:
    """Read the checkpoint back and compare it with the source; gives what to tell.

    One model after the other: there is never more than one copy of the weights in memory.
    """
    from gptscale.checkpoint.model import load_model
    from gptscale.weights.check import compare_logits, probe, their_logits

    unread = "transformers cannot read this form"
    expected = their_logits(found.folder, probe(cfg.model)) if found.folder else unread
    model, _ = load_model(folder)
    lines = [f"weights: {found.origin}, {model.num_parameters():,} parameters"]
    if cfg.data.tokenizer == "gpt2" and cfg.model.vocab_size < GPT2_TOKENS:
        lines.append(
            f"WARNING: its {cfg.model.vocab_size} tokens are fewer than the {GPT2_TOKENS} of gpt2, the tokenizer "
            "where none is said; name the model's own with data.tokenizer=..."
        )
    checked = "checked: names, shapes, finite values"
    if isinstance(expected, str):
        return [*lines, f"{checked}; logits not, since {expected}"]
    difference = compare_logits(model, expected, found.origin)
    return [*lines, f"{checked}, logits (equal to transformers' within {difference:.1e})"]
