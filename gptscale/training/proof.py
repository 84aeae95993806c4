"""The proof that a killed run goes on as if nothing had been: it is run, killed, resumed and compared."""

import math
import time
from dataclasses import dataclass
from pathlib import Path

from gptscale.checkpoint.layout import read_manifest, step_dir
from gptscale.config.load import dump_config, load_config
from gptscale.config.schema import Config
from gptscale.errors import TrainingError
from gptscale.runtime.processes import Place, Processes
from gptscale.tracking.jsonl import LOG_FILE, read_log

POLL_S = 0.002
EVALUATED_SEQUENCES = 8
"""Evaluation changes nothing, so the proof hardly spends time on it."""

Trace = dict[int, tuple[float, float]]
"""Loss and gradient norm by step."""


@dataclass(frozen=True)
class Proof:
    """Two traces of the same steps, and what they may differ by."""

    before: Place
    after: Place
    precision: str
    resumed_from: int
    killed_after: int
    whole: Trace
    resumed: Trace
    same_state: bool | None
    """Whether the last checkpoints are equal bit for bit; null where engine or ranks changed, and so the files."""

    @property
    def promised(self) -> float:
        """The largest relative difference that is allowed; 0 is bit for bit."""
        if self.before == self.after:
            return 0.0
        return 1e-5 if self.precision == "fp32" else 1e-3

    def difference_at(self, step: int) -> float:
        """The larger relative difference of a step's loss and gradient norm."""
        return max(_relative(a, b) for a, b in zip(self.whole[step], self.resumed[step], strict=True))

    @property
    def difference(self) -> tuple[float, int]:
        """The largest relative difference of all steps, and where it is."""
        return max((self.difference_at(step), step) for step in self.whole)

    @property
    def bounded(self) -> tuple[float, int]:
        """The difference that the promise is about: under rounding to 16 bits elsewhere, that of the loss alone.

        There a gradient norm says how rounding grows in the backward pass, and has no bound of use.
        """
        if self.precision == "fp32" or self.before == self.after:
            return self.difference
        return max((_relative(self.whole[step][0], self.resumed[step][0]), step) for step in self.whole)

    @property
    def holds(self) -> bool:
        """Whether the resumed run is what was promised."""
        return self.bounded[0] <= self.promised and self.same_state is not False

    def verdict(self) -> str:
        """One line."""
        exact = not self.difference[0]
        if exact and self.same_state is False:
            return "NOT PROVED: the traces are equal, but the last checkpoints are not"
        if exact:
            state = ", and so are all weights and moments after the last one" if self.same_state else ""
            return f"bit-exact: every loss and gradient norm of {len(self.whole)} steps is the same{state}"
        largest, step = self.bounded
        word = "as promised" if self.holds else "NOT PROVED"
        return f"{word}: differs by {largest:.2g} at most (step {step}), allowed {self.promised:g}; {self._reason()}"

    def _reason(self) -> str:
        if self.before.ranks != self.after.ranks:
            return f"{self.after.ranks} instead of {self.before.ranks} ranks add the same numbers in another order"
        if self.before.engine != self.after.engine:
            return f"{self.after.engine} adds the same numbers in another order than {self.before.engine}"
        return "engine and ranks are the same, so nothing explains it"


def _relative(a: float, b: float) -> float:
    """0 for equal numbers and where both are none (a step that fp16 skips); infinity where one of them is none."""
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    found = abs(a - b) / max(abs(a), abs(b))
    return math.inf if math.isnan(found) else found


def prove_resume(cfg: Config, steps: int, before: Place, after: Place, scratch: Path) -> Proof:
    """Train so many steps in one go, and again with a kill and a resume in another place, in a scratch folder.

    The run is cfg's, made so short: a schedule without decay_steps is drawn together. Raises TrainingError
    if a run fails, or ends before it could be killed.
    """
    whole_dir, killed_dir = scratch / "whole", scratch / "killed"
    checkpoint = steps // 2
    whole = _shortened(cfg, steps, checkpoint, whole_dir)
    _train(before, _written(whole), scratch / "whole.txt")
    known = load_config(whole_dir / "config.yaml")  # in which micro_batch_sequences: auto has become a number
    killed = _written(_shortened(known, steps, checkpoint, killed_dir))
    with Processes(before, ["train", killed], scratch / "killed.txt") as processes:
        _await_checkpoint(processes, killed_dir, checkpoint)
        processes.kill()
    killed_after = max(_trace(killed_dir))
    _train(after, killed, scratch / "resumed.txt")
    return Proof(
        before=before,
        after=after,
        precision=cfg.train.precision,
        resumed_from=checkpoint,
        killed_after=killed_after,
        whole=_whole_trace(whole_dir, steps),
        resumed=_whole_trace(killed_dir, steps),
        same_state=_files(whole_dir, steps) == _files(killed_dir, steps) if before == after else None,
    )


def _train(place: Place, config: str, output: Path) -> None:
    with Processes(place, ["train", config], output) as processes:
        processes.wait()


def _shortened(cfg: Config, steps: int, checkpoint: int, run_dir: Path) -> Config:
    """The run of so many steps with every step on record, one checkpoint on the way and little else."""
    return cfg.with_changes(
        run={"dir": run_dir},
        train={"steps": steps, "tokens": None, "epochs": None, "log_every_steps": 1, "profile_at_step": None},
        optim={"warmup_steps": min(cfg.optim.warmup_steps, steps // 4)},
        eval={"every_steps": None, "sequences": EVALUATED_SEQUENCES, "train_sequences": None},
        sample={"prompts": ()},
        checkpoint={"every_steps": checkpoint, "keep": None},
        wandb={"mode": "disabled"},
    )


def _written(cfg: Config) -> str:
    path = cfg.run.dir.with_suffix(".yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dump_config(cfg), encoding="utf-8")
    return str(path)


def _await_checkpoint(processes: Processes, run_dir: Path, step: int) -> None:
    """Return when a step's checkpoint is there and a later step is done, which the kill will undo."""
    while not (step_dir(run_dir, step).is_dir() and max(_trace(run_dir), default=0) > step):
        if not processes.running():
            raise TrainingError(f"the run was over before it could be killed after step {step}; raise --steps")
        time.sleep(POLL_S)


def _trace(run_dir: Path) -> Trace:
    records = [record for record in read_log(run_dir / LOG_FILE) if "train/loss" in record]
    return {int(r["step"]): (r["train/loss"], r["train/grad_norm"]) for r in records}


def _whole_trace(run_dir: Path, steps: int) -> Trace:
    trace = _trace(run_dir)
    if len(trace) < steps:  # a signal ends a run early, and well
        raise TrainingError(f"{run_dir} was stopped after {len(trace)} of {steps} steps; start the proof again")
    return trace


def _files(run_dir: Path, step: int) -> object:
    return read_manifest(step_dir(run_dir, step)).files
