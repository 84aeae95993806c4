"""gptscale import-state: go on with a training that Accelerate or DeepSpeed saved."""

from pathlib import Path
from typing import Annotated

import typer

from gptscale.cli.arguments import ConfigFile, Overrides


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("import-state")(run_import_state)


def run_import_state(
    config: ConfigFile,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of save_state, or a ZeRO checkpoint.")],
    overrides: Overrides = None,
) -> None:
    """Make weights and AdamW's moments from DIR a checkpoint of CONFIG's run, with which `train` goes on."""
    from gptscale.config.load import load_config
    from gptscale.training.migrate import import_state

    path = import_state(load_config(config, overrides or ()), folder)
    print(f"{folder} is now {path}; `gptscale train {config}` goes on from there")
