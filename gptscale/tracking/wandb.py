"""Weights & Biases as a view of log.jsonl.

Every point carries its own `step`, `tokens` and `epoch`; `step` is the axis W&B draws against. So a resume
that goes back to an earlier checkpoint needs no rewinding: the repeated steps lie over the old ones.
"""

import html
import logging
import secrets
from pathlib import Path
from typing import Any

from gptscale.config.schema import Config
from gptscale.errors import TrainingError
from gptscale.tracking.tracker import Record

LOG = logging.getLogger(__name__)

PATIENCE_S = 60.0
"""How long W&B may hold up the start or the end of a run; what it could not send stays on disk."""


def open_wandb(cfg: Config, run_dir: Path) -> "WandbSink | None":
    """Start W&B as the config says; None when wandb.mode is disabled. Raises what WandbSink raises."""
    return None if cfg.wandb.mode == "disabled" else WandbSink(cfg, run_dir)


class WandbSink:
    """One W&B run for the life of a run folder, however often it is resumed.

    Raises TrainingError if the package is missing or cannot start, or if mode is online and nobody is logged
    in. An online run that cannot reach its server is recorded offline, for `wandb sync`.
    """

    required = False

    def __init__(self, cfg: Config, run_dir: Path) -> None:
        self._wandb = _package()
        if cfg.wandb.mode == "online":
            _require_login(self._wandb)
        self._run = _start(self._wandb, cfg, run_dir)
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        self._prompts: dict[str, int] = {}

    def log(self, record: Record) -> None:
        """Add a point to every curve of the record."""
        self._run.log(dict(record))

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Add the text to the panel of its prompt; prompts are numbered as they come."""
        number = self._prompts.setdefault(prompt, len(self._prompts))
        page = f"<pre style='white-space: pre-wrap'><b>{html.escape(prompt)}</b>{html.escape(text)}</pre>"
        self._run.log({"step": step, f"sample/{number}": self._wandb.Html(page, inject=False)})

    def flush(self) -> None:
        """Nothing: this is a view."""

    def close(self, failed: bool = False) -> None:
        """Send the rest and mark the W&B run as finished, or as failed."""
        self._run.finish(exit_code=int(failed))


def _package() -> Any:
    try:
        import wandb
    except ImportError as error:
        raise TrainingError(
            "wandb.mode needs the wandb package: run pip install wandb, or set wandb.mode=disabled"
        ) from error
    return wandb


def _require_login(wandb: Any) -> None:
    """Look for credentials without asking anybody and without the network."""
    if not wandb.login(prompt=False, verify=False):
        raise TrainingError("wandb.mode=online needs a login: run wandb login, or set wandb.mode=offline or disabled")


def _start(wandb: Any, cfg: Config, run_dir: Path) -> Any:
    """Begin or continue the folder's W&B run. W&B raises more kinds of errors than its own."""
    options = _options(wandb, cfg, run_dir)
    if cfg.wandb.mode == "online":
        try:
            return wandb.init(mode="online", **options)
        except Exception as error:
            LOG.warning("W&B records offline, for wandb sync, since it cannot start online: %s", _line(error))
            wandb.teardown()  # its service still holds the run id
    try:
        return wandb.init(mode="offline", **options)
    except Exception as error:
        raise TrainingError(f"W&B cannot start ({_line(error)}); set wandb.mode=disabled") from error


def _options(wandb: Any, cfg: Config, run_dir: Path) -> dict[str, Any]:
    (run_dir / "wandb").mkdir(parents=True, exist_ok=True)  # W&B goes elsewhere if it is not there
    return {
        "project": cfg.wandb.project,
        "entity": cfg.wandb.entity,
        "tags": cfg.wandb.tags,
        "dir": run_dir,
        "id": _run_id(run_dir / "wandb" / "run-id"),
        "name": run_dir.resolve().name,
        "config": cfg.model_dump(mode="json"),
        "allow_val_change": True,  # a resume may extend the run
        "resume": "allow",
        "settings": wandb.Settings(console="off", init_timeout=PATIENCE_S, finish_timeout=PATIENCE_S),
    }


def _run_id(path: Path) -> str:
    """The id kept in the run folder, made on the first start."""
    if path.exists() and (kept := path.read_text().strip()):
        return kept
    path.write_text(made := secrets.token_hex(4))
    return made


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
