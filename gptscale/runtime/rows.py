"""What gptscale doctor finds, a row for each thing; and what commands of the machine say. Imports no torch."""

import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Verdict = Literal["good", "look", "bad"]


@dataclass(frozen=True)
class Row:
    """One thing, what was found, and what to do about it unless it is good."""

    name: str
    found: str
    verdict: Verdict = "good"
    advice: str = ""


ALIKE = ("Python", "torch", "CUDA", "driver", "GPUs", "NCCL")
"""What all machines of a run should have the same of."""


def told(of_ranks: Sequence[Sequence[Row]]) -> Iterator[str]:
    """The rows of all ranks as lines: as the first rank found it, and again for ranks that judge otherwise."""
    for rows in zip(*of_ranks, strict=True):
        differ = rows[0].name in ALIKE and len({row.found for row in rows}) > 1
        groups: dict[tuple[Verdict, str], list[int]] = {}
        for rank, row in enumerate(rows):
            groups.setdefault((row.verdict, row.found if differ else ""), []).append(rank)
        for ranks in groups.values():
            row = rows[ranks[0]]
            if differ and row.verdict == "good":
                row = replace(row, verdict="look", advice="install the same on all machines")
            where = f" (rank {', '.join(map(str, ranks))})" if len(groups) > 1 else ""
            yield f"{row.verdict:4}  {row.name:15} {row.found}{where}{f': {row.advice}' if row.advice else ''}"


ASKING_S = 10.0
"""How long a command of the machine may take to answer; a run does not hang on it."""


def output_of(*command: str) -> str:
    """What a command of the machine prints; nothing where there is none, or it fails or hangs."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=ASKING_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
