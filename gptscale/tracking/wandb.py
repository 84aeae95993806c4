"""Weights & Biases as a view of log.jsonl: a step of training is a step of W&B, and there once.

Online, a resume rewinds the W&B run to the checkpoint's step. Offline, where nobody can rewind what was written, a
resume writes the whole history anew from the run folder; so the newest file always holds all of it, for `wandb sync`.
A run that W&B fails in goes on offline in the same way. All of this happens beside training, on a thread of its own.
"""

import logging
import math
import os
import secrets
import shutil
from collections.abc import Callable
from functools import partial
from heapq import merge
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from pydantic import ValidationError

from gptscale.config.schema import Config
from gptscale.errors import TrainingError, first_line
from gptscale.tracking.beside import Beside
from gptscale.tracking.jsonl import HISTOGRAMS_FILE, LOG_FILE, SAMPLES_FILE, read_histograms, read_log, read_samples
from gptscale.tracking.provenance import last_start
from gptscale.tracking.tracker import Histograms, Record, View

LOG = logging.getLogger(__name__)

PATIENCE_S = 60.0
"""How long W&B may hold up the start or the end of a run; what it could not send stays on disk."""

URGENT_S = 10.0
"""The same at an end that a scheduler has set: less than a run leaves itself for it (training/deadline.py)."""


def wandb_beside(
    cfg: Config, run_dir: Path, step: int = 0, is_urgent: Callable[[], bool] = lambda: False, **facts: Any
) -> Beside | None:
    """Start W&B beside training, as `open_wandb` does; raises TrainingError if the package is missing.

    is_urgent is asked at the end, whether that may take URGENT_S only.
    """
    if _mode(cfg) == "disabled":
        return None
    _package()
    # Until it is offline, has named the last checkpoint, and has sent the rest.
    return Beside(
        "W&B",
        lambda: open_wandb(cfg, run_dir, step, **facts),
        patience_s=lambda: URGENT_S if is_urgent() else 3 * PATIENCE_S,
    )


def open_wandb(cfg: Config, run_dir: Path, step: int = 0, **facts: Any) -> "WandbSink | None":
    """Start W&B as the config says, for a run that goes on from a step, after its log was cut back to it.

    facts join the W&B run's config. None when wandb.mode is disabled, or with one line when W&B cannot start.
    Raises TrainingError if the package is missing.
    """
    if _mode(cfg) == "disabled":
        return None
    wandb = _package()
    os.environ.pop("WANDB_SERVICE", None)  # of the process that started this one; it would go on with a killed run
    try:
        return WandbSink(wandb, cfg, run_dir, step, facts)
    except Exception as error:  # W&B raises more kinds of errors than its own
        LOG.warning(
            "W&B cannot start (%s) and is off until the next start; training and log.jsonl go on", _reason(error)
        )
        _tear_down(wandb)
        return None


class WandbSink(View):
    """One W&B run for the life of a run folder, however often it is resumed.

    An online run that finds no key or no server, and a run that W&B fails in, is recorded offline, for `wandb sync`,
    and says so in one line. What the sink is given must be in the run folder already.
    """

    name = "W&B"

    def __init__(self, wandb: Any, cfg: Config, run_dir: Path, step: int, facts: dict[str, Any]) -> None:
        self._wandb = wandb
        self._cfg = cfg
        self._run_dir = run_dir
        self._samples: list[tuple[int, str, str]] = []
        self._reached = 0.0
        """The last step told from the run folder, which may be ahead of what was given."""
        self._failed = False
        self._first_row = step + 1 if step else 0
        """Online, W&B takes nothing at the step that it is rewound to, such as what sent a run back there."""
        self._checkpoints: SimpleQueue[int | None] = SimpleQueue()
        self._errand = Thread(target=self._tell_checkpoints, daemon=True)
        (run_dir / "wandb").mkdir(parents=True, exist_ok=True)  # W&B goes elsewhere if it is not there
        self._options = _options(wandb, cfg, run_dir, step, facts)
        self._run: Any = None
        if _mode(cfg) == "offline" or not self._begin_online(step):
            self._begin_offline()
        self._errand.start()

    def log(self, record: Record) -> None:
        """Add the record to the row of its step."""
        self._tell(record["step"], lambda: self._log(record))

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Keep the text for the table of its step."""
        if step >= self._reached:
            self._samples.append((step, prompt, text))

    def histograms(self, progress: Record, found: Histograms) -> None:
        """Add the histograms to the row of their step."""
        self._tell(progress["step"], lambda: self._histograms(progress, found))

    def close(self, failed: bool = False) -> None:
        """Send the rest and mark the W&B run as finished, or as failed."""
        self._tell(math.inf, self._tell_samples)
        self._checkpoints.put(None)
        self._errand.join(PATIENCE_S)
        if not self._tell(math.inf, lambda: self._run.finish(exit_code=int(failed))):
            self._run.finish(exit_code=int(failed))

    def _begin_online(self, step: int) -> bool:
        """Begin or continue the folder's W&B run at the server; says whether that went well."""
        rewound = {"resume_from": f"{self._options['id']}?_step={step}"}  # which cannot be resumed by its id besides
        try:
            if not self._wandb.login(prompt=False, verify=False):  # asks nobody, and not the network
                raise TrainingError("no key: run wandb login")
            place = rewound if step and self._cfg.wandb.rewind else {"resume": "allow"}
            self._run = self._wandb.init(mode="online", **self._options, **place)
        except Exception as error:
            LOG.warning("W&B records offline, for wandb sync, since it cannot start online: %s", _reason(error))
            _tear_down(self._wandb)
            return False
        self._define_axes()
        return True

    def _begin_offline(self) -> None:
        """Write the whole history anew."""
        self._first_row = 0
        older = set((self._run_dir / "wandb").glob("offline-run-*"))
        self._run = self._wandb.init(mode="offline", **self._options)
        self._define_axes()
        self._replay()
        for folder in older - {Path(self._run.dir).parent}:  # what they held is in the new one
            shutil.rmtree(folder, ignore_errors=True)

    def _define_axes(self) -> None:
        for progress in ("step", "tokens", "epoch", "time_s"):
            self._run.define_metric(progress)
        self._run.define_metric("*", step_metric=self._cfg.wandb.x_axis)

    def _tell(self, step: float, act: Callable[[], None]) -> bool:
        """Act, unless that was told from the run folder; says whether it did. Where W&B fails, go on offline, once."""
        if step < self._reached:
            return False
        try:
            act()
        except Exception as error:
            if self._failed:
                raise
            self._failed = True
            LOG.warning("W&B records offline from here, for wandb sync, since it failed: %s", first_line(error))
            _tear_down(self._wandb)
            self._begin_offline()
            return False
        return True

    def _log(self, record: Record) -> None:
        self._tell_samples()
        self._run.log(dict(record), step=max(int(record["step"]), self._first_row))
        if "checkpoint/step" in record and self._cfg.wandb.checkpoints != "none":
            self._checkpoints.put(int(record["checkpoint/step"]))

    def _histograms(self, progress: Record, found: Histograms) -> None:
        self._tell_samples()
        made = {
            name: self._wandb.Histogram(np_histogram=(list(histogram.counts), histogram.edges))
            for name, histogram in found.items()
        }
        self._run.log({**progress, **made}, step=int(progress["step"]))

    def _tell_samples(self) -> None:
        """Log the samples of the last evaluation."""
        samples, self._samples = self._samples, []
        if samples:
            self._tell_table(samples)

    def _tell_table(self, samples: list[tuple[int, str, str]]) -> None:
        """Log samples of one step as one table, in the row of their step."""
        table = self._wandb.Table(columns=["step", "prompt", "text"], data=[list(row) for row in samples])
        self._run.log({"samples": table}, step=samples[0][0])

    def _tell_checkpoints(self) -> None:
        """Name checkpoints in their order, beside training: hashing and copying one takes minutes."""
        for step in iter(self._checkpoints.get, None):
            self._tell_checkpoint(step)

    def _tell_checkpoint(self, step: int) -> None:
        """Name a checkpoint that is still kept as a version of the W&B run's model, with its files or its place."""
        folder = (self._run_dir / "checkpoints" / f"step-{step:08d}").resolve()
        if not folder.is_dir():
            return
        try:
            artifact = self._wandb.Artifact(f"{self._run.id}-checkpoint", type="model", metadata={"step": step})
            if self._cfg.wandb.checkpoints == "upload":
                artifact.add_dir(str(folder))
            else:
                artifact.add_reference(folder.as_uri(), checksum=False)
            self._run.log_artifact(artifact, aliases=["latest", f"step-{step}"])
        except Exception as error:
            LOG.warning("W&B did not take checkpoint %s: %s", folder, first_line(error))

    def _replay(self) -> None:
        """Write the history so far, as the files of the run folder have it, in the order of its steps."""
        self._samples.clear()
        counted = read_histograms(self._run_dir / HISTOGRAMS_FILE)
        told = [(record["step"], partial(self._log, record)) for record in read_log(self._run_dir / LOG_FILE)]
        samples = [(its["step"], its["prompt"], its["text"]) for its in read_samples(self._run_dir / SAMPLES_FILE)]
        for step, of_one in groupby(samples, itemgetter(0)):
            told.append((step, partial(self._tell_table, list(of_one))))
        told.sort(key=itemgetter(0))  # which keeps the order within a step, as merge does
        of_counted = ((progress["step"], partial(self._histograms, progress, found)) for progress, found in counted)
        for step, tell in merge(of_counted, told, key=itemgetter(0)):
            tell()
            self._reached = step


def _reason(error: Exception) -> str:
    """What W&B says, in one line; of a setting that it does not take, never the value, which may be a key."""
    if not isinstance(error, ValidationError):
        return first_line(error)
    return "; ".join(
        f"{'.'.join(map(str, its['loc']))}: {its['msg'].removeprefix('Value error, ')}"
        for its in error.errors(include_input=False)
    )


def _mode(cfg: Config) -> str:
    """The config's, or W&B's own variable where that asks for less: a machine without a way out."""
    less = os.environ.get("WANDB_MODE")
    return less if less in ("offline", "disabled") and cfg.wandb.mode != "disabled" else cfg.wandb.mode


def _package() -> Any:
    try:
        import wandb
    except ImportError as error:
        raise TrainingError(
            "wandb.mode needs the wandb package: run pip install wandb, or set wandb.mode=disabled"
        ) from error
    return wandb


def _tear_down(wandb: Any) -> None:
    """End W&B's service, which still holds the run id; where it was killed, W&B wants to end this process too."""
    try:
        wandb.teardown()
    except (Exception, SystemExit) as error:
        LOG.debug("W&B's service: %s", error)


def _options(wandb: Any, cfg: Config, run_dir: Path, step: int, facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "project": cfg.wandb.project,
        "entity": cfg.wandb.entity,
        "group": cfg.wandb.group,
        "tags": cfg.wandb.tags,
        "notes": cfg.wandb.notes,
        "dir": run_dir,
        "id": _run_id(run_dir / "wandb" / "run-id", step),
        "name": run_dir.resolve().name,
        "config": {**cfg.model_dump(mode="json"), "facts": facts, "provenance": last_start(run_dir)},
        "allow_val_change": True,  # a resume may extend the run
        "settings": wandb.Settings(console="off", init_timeout=PATIENCE_S, finish_timeout=PATIENCE_S),
    }


def _run_id(path: Path, step: int) -> str:
    """The id kept in the run folder; a start from nothing makes another, since W&B takes no step a second time."""
    if step and path.exists() and (kept := path.read_text().strip()):
        return kept
    path.write_text(made := secrets.token_hex(4))
    return made
