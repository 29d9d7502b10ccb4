"""What signals do while a fit runs."""

import signal
import time

import pytest

from shoal.training.interruption import stop_requests

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def signalled(
    *numbers: signal.Signals, then: type[Exception] | None = None, pause: float = 0.0
) -> list[bool]:
    """Raise signals within a block; return what was asked after each, as far as it came."""
    with stop_requests(heeded=True) as asked:
        seen.append(asked())
        for number in numbers:
            signal.raise_signal(number)
            seen.append(asked())
            time.sleep(pause)
        if then is not None:
            raise then
    return seen


seen: list[bool] = []


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    seen.clear()


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_asks_and_the_second_interrupts(number: signal.Signals) -> None:
    before = [signal.getsignal(n) for n in SIGNALS]
    with pytest.raises(KeyboardInterrupt):
        signalled(number, number, pause=0.6)
    assert seen == [False, True]
    assert [signal.getsignal(n) for n in SIGNALS] == before


def test_two_signals_at_once_are_one_request() -> None:
    with pytest.raises(ZeroDivisionError):
        signalled(signal.SIGTERM, signal.SIGTERM, signal.SIGINT, then=ZeroDivisionError)
    assert seen == [False, True, True, True]


def test_before_the_work_has_begun_nothing_is_waited_for() -> None:
    with pytest.raises(KeyboardInterrupt), stop_requests(heeded=True, begun=lambda: False):
        signal.raise_signal(signal.SIGTERM)


def test_a_request_that_nobody_heeded_interrupts_at_the_end() -> None:
    with pytest.raises(KeyboardInterrupt):
        signalled(signal.SIGTERM)
    assert seen == [False, True]


def test_an_error_of_the_block_comes_before_the_request() -> None:
    with pytest.raises(ValueError, match="^$"):
        signalled(signal.SIGTERM, then=ValueError)


def test_signals_that_are_ignored_stay_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_requests(heeded=True) as asked:
            signal.raise_signal(signal.SIGINT)
            assert not asked()
    finally:
        signal.signal(signal.SIGINT, before)


def test_without_checkpoints_signals_do_what_they_did() -> None:
    with pytest.raises(KeyboardInterrupt), stop_requests(heeded=False):
        signal.raise_signal(signal.SIGINT)
