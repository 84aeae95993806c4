"""gptscale doctor: what this machine has, and what a run would trip over."""

import os
from pathlib import Path
from typing import Annotated

import typer

from gptscale.errors import DataError
from gptscale.runtime.rows import Row, told

HUB_WAIT_S = 5.0


def run_doctor(
    run_dir: Annotated[Path, typer.Option(help="Where runs would be kept: its disk is measured.")] = Path("runs"),
) -> None:
    """Look at this machine; exits with 2 if something would stop a run. Under a launcher, at the ranks together."""
    from gptscale.runtime import ranks
    from gptscale.runtime.launch import launched_rank
    from gptscale.runtime.probe import machine_rows

    ranks.join()
    of_ranks = ranks.gather([*machine_rows(run_dir), _compiler(), _tokenizer(), _hub(), _wandb_key()])
    if launched_rank() == 0:
        print(*told(of_ranks), sep="\n")
    ranks.leave()
    if any(row.verdict == "bad" for rows in of_ranks for row in rows):
        raise typer.Exit(2)


def _compiler() -> Row:
    from gptscale.runtime.compiled import finds_python_headers, found_compiler
    from gptscale.runtime.device import local_device

    found = found_compiler(local_device())
    if found is None:
        advice = "train.compile=true needs one: install g++, or name one in CXX (in CC for a GPU)"
        return Row("compiler", "none", "look", advice)
    if not finds_python_headers(found):
        advice = "train.compile=true needs them: install python3-dev (python3-devel on Fedora and its kin)"
        return Row("compiler", f"{found}, without the C headers of Python", "look", advice)
    return Row("compiler", f"{found}, for train.compile")


def _tokenizer() -> Row:
    from gptscale.data.tokenizer import load_tokenizer

    try:
        ids = load_tokenizer("gpt2").encode("Hello world")
    except DataError as error:
        return Row("tokenizer", str(error), "bad", "install gptscale again")
    if list(ids) != [15496, 995]:  # as OpenAI's own encoder gives them
        return Row("tokenizer", f"gpt2 gives {list(ids)} for 'Hello world'", "bad", "install gptscale again")
    return Row("tokenizer", "gpt2 is exact, and needs no network")


def _hub() -> Row:
    from urllib.error import HTTPError
    from urllib.parse import urlsplit
    from urllib.request import Request, build_opener

    from gptscale.data.hub import is_offline

    if is_offline():
        return Row("Hub", "the environment says offline: local files and the cache only")
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    host = urlsplit(endpoint).hostname or "HF_ENDPOINT"  # never the whole address, which may hold a password
    try:
        request = Request(endpoint, method="HEAD")
        build_opener().open(request, timeout=HUB_WAIT_S).close()  # by the proxy, where there is one
    except HTTPError as answer:  # an answer, too
        answer.close()
    except (OSError, ValueError):
        advice = "prepare corpora of the Hub elsewhere, or set HF_HUB_OFFLINE=1 and use local files"
        return Row("Hub", f"{host} cannot be reached", "look", advice)
    return Row("Hub", f"{host} answers")


def _wandb_key() -> Row:
    import netrc

    if os.environ.get("WANDB_API_KEY"):
        return Row("W&B key", "present, in WANDB_API_KEY")
    try:
        known = netrc.netrc(os.environ.get("NETRC") or Path.home() / ".netrc").hosts
    except (OSError, RuntimeError, ValueError, netrc.NetrcParseError):  # no home, or not in UTF-8
        known = {}
    if any("wandb" in host for host in known):
        return Row("W&B key", "present, in the netrc file")
    return Row("W&B key", "none", "look", "wandb.mode=online needs `wandb login`; offline and disabled do not")
