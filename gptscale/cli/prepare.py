"""gptscale prepare: from text to token shards."""

import typer

from gptscale.cli.arguments import ConfigFile, Overrides


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("prepare")(run_prepare)


def run_prepare(config: ConfigFile, overrides: Overrides = None) -> None:
    """Make the token shards of data.dir; goes on where it was stopped, and reuses what is there."""
    from gptscale.config.load import load_config
    from gptscale.data.prepare import prepare

    prepare(load_config(config, overrides or ()))
