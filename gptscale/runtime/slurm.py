"""What SLURM says of the job that this process belongs to. Imports no torch."""

import os
import re
from datetime import datetime

from gptscale.runtime.rows import output_of


def job_name() -> str | None:
    """The job and which of its starts this is, as `job 12, start 0`; None outside SLURM."""
    job = os.environ.get("SLURM_JOB_ID")
    return job and f"job {job}, start {os.environ.get('SLURM_RESTART_COUNT', '0')}"


def job_end() -> float | None:
    """When SLURM will end this job, on the clock of `time.time`; None without a limit or outside SLURM.

    Newer SLURMs put it into the environment, older ones are asked.
    """
    if "SLURM_JOB_ID" not in os.environ:
        return None
    said = os.environ.get("SLURM_JOB_END_TIME", "")
    if said.isdigit():
        return float(said)
    text = output_of("scontrol", "show", "job", _as_commands_name_it())
    found = re.search(r"\bEndTime=(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)", text)  # in local time; Unknown without a limit
    return datetime.fromisoformat(found[1]).timestamp() if found else None


def _as_commands_name_it() -> str:
    """This job for SLURM's commands, which take the number that an array's last task has for the whole array."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ["SLURM_JOB_ID"]
