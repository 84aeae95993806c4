"""gptscale report: the curves of a run."""

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("report")(run_report)


def run_report(run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]) -> None:
    """Draw loss and perplexity against steps, tokens and epochs from the run's log.jsonl."""
    from gptscale.tracking.report import write_report

    for path in write_report(run):
        print(path)
