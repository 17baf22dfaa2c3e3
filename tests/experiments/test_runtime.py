import os
import signal
import threading

import pytest
import torch

from sparsekern.experiments.errors import ExperimentError
from sparsekern.experiments.runtime import StopSignals, flushed_denormals, usable_device


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_the_second_acts(number):
    class Acted(Exception):
        pass

    def act(*arguments):
        raise Acted

    before = signal.signal(number, act)
    try:
        with StopSignals() as signals:
            assert signals.received is None
            os.kill(os.getpid(), number)
            assert signals.received is number
            with pytest.raises(Acted):
                os.kill(os.getpid(), number)
        assert signal.getsignal(number) is act
    finally:
        signal.signal(number, before)


def test_other_threads_leave_the_handlers_alone():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work():
        with StopSignals():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.parametrize("name", ["gpu5", "cuda:99", ""])
def test_a_device_that_is_not_there_is_one_line(name):
    with pytest.raises(
        ExperimentError, match=f"--device must be a device torch can use here, got {name!r}: "
    ) as caught:
        usable_device(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("before", [False, True])
def test_denormals_are_flushed_inside_the_block_and_as_before_after_it(before):
    tiny = torch.tensor([1e-39], dtype=torch.float32)
    torch.set_flush_denormal(before)
    try:
        with flushed_denormals():
            assert (tiny * 0.5 == 0).item()
        assert (tiny * 0.5 == 0).item() is before
    finally:
        torch.set_flush_denormal(False)
