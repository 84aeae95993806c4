"""The `gptscale` command with steps of a given length, so that a run lasts as long on any machine.

It stands in for the interpreter of the ranks (PYTHON_EXEC). Its arguments are the seconds, and then what the
interpreter is given: -u -m gptscale VERB ...
"""

import sys
import time
from typing import Any

from gptscale.cli.main import main
from gptscale.training import loop

STEP_S = float(sys.argv[1])
train_step = loop.train_step


def paced_step(*args: Any, **kwargs: Any) -> Any:
    end = time.monotonic() + STEP_S
    result = train_step(*args, **kwargs)
    time.sleep(max(0.0, end - time.monotonic()))
    return result


loop.train_step = paced_step
del sys.argv[1:5]
main()
