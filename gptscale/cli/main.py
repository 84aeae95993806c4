"""The `gptscale` command. A verb's heavy imports wait until the verb runs."""

import os
import sys
import traceback

import typer

from gptscale.cli import demo, evaluate, generate, prepare, report, train
from gptscale.errors import GptscaleError

USERS_MISTAKE, OUR_MISTAKE, INTERRUPTED = 2, 1, 130

app = typer.Typer(
    help="Pre-train GPT-2-family language models.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for verb in (prepare, train, evaluate, generate, report, demo):
    verb.register(app)


def main() -> None:
    """Run a verb; one line and exit code 2 for a user's mistake, a traceback and 1 for ours."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        app()
    except GptscaleError as error:
        print(f"gptscale: {error}", file=sys.stderr)
        sys.exit(USERS_MISTAKE)
    except KeyboardInterrupt:
        print("gptscale: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception:
        traceback.print_exc()
        sys.exit(OUR_MISTAKE)
