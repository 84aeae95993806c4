"""Which checkpoints of a run stay on disk."""

from collections.abc import Iterable

from gptscale.config.schema import CheckpointConfig


def doomed(rules: CheckpointConfig, steps: Iterable[int], best_step: int | None) -> list[int]:
    """The steps whose checkpoints are to go, oldest first: those that no rule keeps."""
    if rules.keep is None:
        return []

    def stays(step: int) -> bool:
        milestone = rules.keep_every_steps is not None and step % rules.keep_every_steps == 0
        return milestone or (rules.keep_best and step == best_step)

    return [step for step in sorted(steps)[: -rules.keep] if not stays(step)]
