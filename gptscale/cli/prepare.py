"""gptscale prepare: from text to token shards."""

from typing import Annotated

import typer

from gptscale.cli.arguments import ConfigFile, Overrides
from gptscale.errors import ConfigError


def run_prepare(
    config: ConfigFile,
    overrides: Overrides = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; as many as cores without it.")] = None,
    task: Annotated[int | None, typer.Option(min=0, help="Make this share only, 0 to tasks - 1.")] = None,
    tasks: Annotated[int | None, typer.Option(min=1, help="Shares, such as the tasks of a SLURM array.")] = None,
    finish: Annotated[bool, typer.Option("--finish", help="Write the manifest after the last task.")] = False,
) -> None:
    """Make the token shards of data.dir; goes on where it was stopped, and reuses what is there."""
    from gptscale.config.load import load_config
    from gptscale.data import prepare
    from gptscale.data.workers import cores

    if (task is None) != (tasks is None) or (finish and task is not None):
        raise ConfigError("give --task and --tasks together, and --finish alone, after the last task")
    cfg = load_config(config, overrides or ())
    if finish:
        prepare.finish(cfg)
    elif task is not None and tasks is not None:
        prepare.prepare_task(cfg, task, tasks, workers=workers or cores())
    else:
        prepare.prepare(cfg, workers=workers or cores())
