"""Where torch.compile keeps what it made, so that the next start of a run need not make it again."""

import os
from pathlib import Path


def keep_compiled() -> None:
    """Keep it in the user's cache; torch's own place is in /tmp, which a node may lose with its job.

    TORCHINDUCTOR_CACHE_DIR decides where it is set. A path with a space is left alone: the C++ compiler is given it
    unquoted.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = str(Path(home, "gptscale", "compiled"))
    if " " not in folder:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", folder)
