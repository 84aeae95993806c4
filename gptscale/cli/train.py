"""gptscale train: train, or go on."""

from gptscale.cli.arguments import ConfigFile, Overrides


def run_train(config: ConfigFile, overrides: Overrides = None) -> None:
    """Train the model of CONFIG; goes on from the run folder's newest good checkpoint."""
    from gptscale.config.load import load_config
    from gptscale.training.run import train

    train(load_config(config, overrides or ()))
