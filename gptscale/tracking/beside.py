"""A sink that works on a thread of its own, so that training never waits for it."""

import logging
from collections.abc import Callable
from queue import SimpleQueue
from threading import Event, Thread

from gptscale.tracking.tracker import Relay, Sink, View, warn_of

LOG = logging.getLogger(__name__)


class Beside(Relay, View):
    """Opens a view beside training and hands it everything in its order; a view that fails is left behind.

    A view that hangs keeps what it was not told in memory, and costs the end of the run no more than patience_s says
    then.
    """

    def __init__(self, name: str, open_sink: Callable[[], Sink | None], patience_s: Callable[[], float]) -> None:
        self.name = name
        self._open_sink = open_sink
        self._patience_s = patience_s
        self._todo: SimpleQueue[Callable[[Sink], None] | None] = SimpleQueue()
        self._dead = Event()
        self._thread = Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def close(self, failed: bool) -> None:
        """Have the rest told and the sink closed, and wait for that as long as there is patience."""
        self._tell(lambda sink: sink.close(failed))
        self._todo.put(None)
        patience_s = self._patience_s()
        self._thread.join(patience_s)
        if self._thread.is_alive():
            LOG.warning("%s has not ended after %.0f s and is left behind", self.name, patience_s)

    def _tell(self, act: Callable[[Sink], None]) -> None:
        if not self._dead.is_set():
            self._todo.put(act)

    def _work(self) -> None:
        try:
            if (sink := self._open_sink()) is not None:
                for act in iter(self._todo.get, None):
                    act(sink)
        except BaseException as error:  # also SystemExit, which W&B raises where its own process was killed
            warn_of(self.name, error)
        self._dead.set()
