"""Signals that wait: held during a block, delivered after it, as they would have been."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from edgetta.interruption import ENDING, Terminated, held, termination_raises

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


@pytest.fixture(autouse=True)
def own_handlers() -> Iterator[None]:
    """Python's own handlers, whatever the tests run under."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_ctrl_c_waits_for_the_end_of_the_block() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), held():
        signal.raise_signal(signal.SIGINT)
        done.append("the rest of the block")
    assert done and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_sigterm_waits_and_becomes_an_exception() -> None:
    done = []
    with pytest.raises(Terminated), termination_raises(), held():
        signal.raise_signal(signal.SIGTERM)
        done.append("the rest of the block")
    assert done and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_sigterm_outside_a_held_block_raises_at_once() -> None:
    with pytest.raises(Terminated), termination_raises():
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("the block went on")


def test_without_a_signal_nothing_happens_and_handlers_are_put_back() -> None:
    with termination_raises():
        inside = signal.getsignal(signal.SIGTERM)
        with held():
            assert signal.getsignal(signal.SIGTERM) is not inside
        assert signal.getsignal(signal.SIGTERM) is inside
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_block_that_fails_still_hands_the_signal_on() -> None:
    with pytest.raises(KeyboardInterrupt) as caught, held():
        signal.raise_signal(signal.SIGINT)
        raise ValueError("inside")
    assert isinstance(caught.value.__context__, ValueError)
    with pytest.raises(ValueError, match="inside"), held():
        raise ValueError("inside")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_many_signals_are_one() -> None:
    seen: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    with held():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert seen == [signal.SIGINT]


def test_what_was_ignored_or_handled_by_others_stays_so() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with termination_raises(), held():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    seen: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    with termination_raises(), held():
        signal.raise_signal(signal.SIGTERM)
        assert not seen
    assert seen == [signal.SIGTERM]


def test_in_another_thread_the_block_simply_runs() -> None:
    done = []

    def work() -> None:
        with termination_raises(), held():
            done.append("ran")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == ["ran"]


@pytest.mark.parametrize("number", ENDING)
def test_every_signal_that_would_end_the_process_waits_too(number: int) -> None:
    before = signal.getsignal(number)
    signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(Terminated) as caught, termination_raises(), held():
            signal.raise_signal(number)
        assert caught.value.number == number and signal.getsignal(number) is signal.SIG_DFL
        name = signal.Signals(number).name
        assert caught.value.told == ("terminated" if name == "SIGTERM" else f"ended by {name}")
    finally:
        signal.signal(number, before)


def test_nohup_is_respected() -> None:
    before = signal.getsignal(signal.SIGHUP)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with termination_raises(), held():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_every_verb_ends_with_143_on_sigterm() -> None:
    program = (
        "import os, signal, sys, types, click\n"
        "from edgetta.cli import VERBS, main\n"
        "def wait():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        while True: signal.pause()\n"
        "    finally:\n"
        "        print('cleaned up')\n"
        "sys.modules['trial_verb'] = types.SimpleNamespace(command=click.command(wait))\n"
        "VERBS['trial'] = ('trial_verb', '')\n"
        "sys.exit(main(['trial']))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr.strip()) == (143, "cleaned up\n", "edgetta: terminated")
