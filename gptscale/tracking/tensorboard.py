"""TensorBoard as a view of log.jsonl."""

from pathlib import Path

from gptscale.errors import TrainingError
from gptscale.tracking.tracker import Histograms, Record, View

AXES = {"step", "time_s"}
"""What TensorBoard has for itself."""


class TensorboardSink(View):
    """Writes run_dir/tensorboard; a resume from a step hides what was written after it.

    Raises TrainingError if the package is missing.
    """

    name = "TensorBoard"

    def __init__(self, run_dir: Path, step: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise TrainingError(
                "tensorboard=true needs the tensorboard package: run pip install tensorboard, or set tensorboard=false"
            ) from error
        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1 if step else 0)

    def log(self, record: Record) -> None:
        """Add a point to every curve of the record."""
        for key, value in record.items():
            if key not in AXES:
                self._writer.add_scalar(key, value, int(record["step"]))

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Add the text under its prompt."""
        quoted = "\n".join(f"    {line}" for line in (prompt + text).splitlines())  # Markdown's code block
        self._writer.add_text(f"sample/{prompt!r}", quoted, step)

    def histograms(self, progress: Record, found: Histograms) -> None:
        """Add a point to every histogram."""
        for name, histogram in found.items():
            edges = histogram.edges
            self._writer.add_histogram_raw(
                name,
                min=histogram.low,
                max=histogram.high,
                num=sum(histogram.counts),
                sum=0.0,  # the sums have fields in the file, but nothing shows them
                sum_squares=0.0,
                bucket_limits=edges[1:],
                bucket_counts=histogram.counts,
                global_step=int(progress["step"]),
            )

    def close(self, failed: bool = False) -> None:
        """Write the rest."""
        self._writer.close()
