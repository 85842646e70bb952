"""Signals are noted while a run watches for them, and end it at once while it does not."""

import os
import signal

import pytest

from etw_lightning.runs.preemption import EXIT_STATUS, SIGNALS, Preempted, StopSignals


@pytest.fixture
def signals():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    watcher = StopSignals()
    watcher.install()
    yield watcher
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted(signals, number):
    signals.is_watched = True
    os.kill(os.getpid(), number)
    assert signals.received == signal.Signals(number).name


def test_the_first_one_counts(signals):
    signals.is_watched = True
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGTERM)
    assert signals.received == "SIGUSR1"


@pytest.mark.parametrize("number", SIGNALS)
def test_without_a_watch_it_ends_the_process(signals, number):
    with pytest.raises(Preempted) as ended:
        os.kill(os.getpid(), number)
    assert ended.value.code == (130 if number == signal.SIGINT else EXIT_STATUS)
    assert EXIT_STATUS == 143


def test_who_asks_twice_does_not_want_to_wait(signals):
    signals.is_watched = True
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
