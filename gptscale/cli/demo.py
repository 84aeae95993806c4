"""gptscale demo: the whole way on this machine in minutes, without a network."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptscale.cli.arguments import Overrides
from gptscale.errors import ConfigError

if TYPE_CHECKING:
    from gptscale.config.schema import Config


DEMO = Path("configs/demo.yaml")


def run_demo(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(metavar="[CONFIG]", help="The run to make.")] = DEMO,
    overrides: Overrides = None,
) -> None:
    """Prepare, train, evaluate, write text and plots; a second run reuses what is there."""
    from gptscale.config.load import load_config
    from gptscale.data.prepare import prepare
    from gptscale.training.run import train

    if "=" in str(config) and not config.exists():  # a setting, of the demo's own config
        config, overrides = DEMO, [str(config), *(overrides or ())]
    if not config.exists():
        raise ConfigError(f"{config} does not exist; run this in a clone of gptscale, or give a config of your own")
    cfg = load_config(config, overrides or ())
    if cfg.data.source is None:
        raise ConfigError(f"{config} names no data.source, from which a demo makes its corpus; add one, or use train")
    print(f"== 1/4 prepare: {cfg.data.source.path} -> {cfg.data.dir}")
    prepare(cfg)
    print(f"\n== 2/4 train -> {cfg.run.dir} (Ctrl-C stops with a checkpoint; the same command goes on)")
    if train(cfg):
        _look_back(context, cfg)


def _look_back(context: typer.Context, cfg: "Config") -> None:
    from gptscale.checkpoint.model import find_checkpoint
    from gptscale.cli.evaluate import run_evaluate
    from gptscale.cli.generate import run_generate
    from gptscale.tracking.page import write_page
    from gptscale.tracking.report import write_report

    run = cfg.run.dir
    print("\n== 3/4 evaluate and write")
    run_evaluate(run, sequences=cfg.eval.sequences)
    run_generate(context, run, [cfg.sample.prompts[0]] if cfg.sample.prompts else ["\n"])
    print("\n== 4/4 plot")
    plots = write_report(run)
    page = write_page([run], run / "report" / "index.html")
    print(
        f"\nreport:     {page}\n"
        f"plots:      {', '.join(str(path) for path in plots)}\n"
        f"samples:    {run / 'samples.jsonl'}\n"
        f"checkpoint: {find_checkpoint(run)[0]}\n"
        "\nnext:\n"
        f"  gptscale generate {run} --prompt 'The '\n"
        f"  gptscale evaluate {run}\n"
        "  gptscale prepare configs/gpt2-124m.yaml && gptscale train configs/gpt2-124m.yaml"
    )
