"""Arguments that several verbs take."""

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file such as configs/gpt2-124m.yaml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="Settings that replace those of the file."),
]
Checkpoint = Annotated[
    Path,
    typer.Argument(metavar="RUN_OR_CHECKPOINT", help="A run folder for its newest checkpoint, or a step-* folder."),
]
