"""gptscale report: the curves of runs."""

from pathlib import Path
from typing import Annotated

import typer

from gptscale.errors import ConfigError


def run_report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders; several are laid over each other.")
    ],
    to: Annotated[Path | None, typer.Option(help="The page's file; null is report/ in the first run's folder.")] = None,
    live: Annotated[bool, typer.Option("--live", help="Serve the page on this machine; it refreshes itself.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port for --live; 0 takes a free one.")] = 8265,
) -> None:
    """Write one HTML page with everything on record, and the curves of each run as PNG."""
    from gptscale.tracking.live import live_server
    from gptscale.tracking.page import write_page
    from gptscale.tracking.report import write_report

    if live and to is not None:
        raise ConfigError("--live serves the page and writes nothing; leave out --to")
    if live:
        with live_server(runs, port) as server:
            print(f"http://127.0.0.1:{server.server_port}/  (Ctrl-C ends it)", flush=True)
            server.serve_forever()
    for run in runs:
        for path in write_report(run):
            print(path)
    name = "index.html" if len(runs) == 1 else "comparison.html"
    print(write_page(runs, to or runs[0] / "report" / name))
