import os
import signal
from threading import Thread

import pytest

from gptscale.runtime.preempt import STOP_SIGNALS, StopRequest


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_sets_the_flag_and_the_old_handler_comes_back(number: signal.Signals) -> None:
    inherited = signal.signal(number, signal.SIG_DFL)  # SIGHUP is ignored under nohup
    try:
        with StopRequest() as stop:
            assert stop.received is None
            os.kill(os.getpid(), number)
            assert stop.received is number
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, inherited)


def test_the_notice_that_a_slurm_job_asks_for_is_heard() -> None:
    with StopRequest() as stop:
        handler = signal.getsignal(signal.SIGUSR1)
        assert callable(handler)  # by itself it ends a process
        handler(signal.SIGUSR1, None)
    assert stop.received is signal.SIGUSR1


def test_a_run_under_nohup_outlives_its_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_ctrl_c_interrupts_at_once() -> None:
    with StopRequest():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_first_signal_counts_and_ctrl_c_interrupts_the_second_time_whatever_came_between() -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received is signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.received is signal.SIGTERM


def test_a_handler_that_is_not_pythons_gives_way_to_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    before, set_handler = signal.getsignal(signal.SIGUSR1), signal.signal
    monkeypatch.setattr(signal, "signal", lambda number, handler: set_handler(number, handler) and None)
    try:
        with StopRequest():
            pass
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    finally:
        for number in STOP_SIGNALS:
            set_handler(number, signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL)
        set_handler(signal.SIGUSR1, before)


def test_another_thread_goes_without_signals() -> None:
    handlers = []

    def enter() -> None:
        with StopRequest() as stop:
            handlers.append((signal.getsignal(signal.SIGTERM), stop.received))

    thread = Thread(target=enter)
    thread.start()
    thread.join()
    assert handlers == [(signal.getsignal(signal.SIGTERM), None)]
