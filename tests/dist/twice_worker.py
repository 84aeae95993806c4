"""One rank of a test: trains ten steps of a config, and ten more, and so on, in one process."""

import sys

from gptscale.config.load import load_config
from gptscale.runtime import ranks
from gptscale.runtime.launch import launched_rank
from gptscale.training.run import train

LIVES = 4

if __name__ == "__main__":
    note = f"left by {launched_rank()}"
    for life in range(LIVES):
        assert train(load_config(sys.argv[2], [f"train.steps={life + 1}0"]))
        if life < LIVES - 1:  # after the last one the first rank ends, and the store with it
            assert ranks.store is not None
            assert not ranks.store.check([note])  # what a group left in its store is no word of the next
            ranks.store.set(note, "yes")
