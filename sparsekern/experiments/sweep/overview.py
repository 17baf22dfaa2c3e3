"""What a person watching a sweep sees: a line for every run that ends and, on a terminal, those that run."""

import shutil
import time
from collections.abc import Sequence
from typing import TextIO

from sparsekern.experiments.sweep.outcome import Outcome
from sparsekern.experiments.sweep.plan import Job

_FRAME_SECONDS = 0.2
_PLAIN_SECONDS = 60.0
_BAR = 16


class Overview:
    """Follows a sweep.

    Parameters
    ----------
    name : str
        What the sweep is called.
    jobs : sequence of Job
        All of them.
    earlier : sequence of Outcome
        Of runs that need not be done.
    stream : TextIO
        Where to write.
    live : bool
        Whether lines can be written over, as on a terminal; elsewhere there is one about all of it a minute.
    """

    def __init__(
        self, name: str, jobs: Sequence[Job], earlier: Sequence[Outcome], stream: TextIO, live: bool
    ) -> None:
        self._name = name
        self._stream = stream
        self._live = live
        self._columns = [max(map(len, column)) for column in zip(*(job.words for job in jobs))]
        self._total = len(jobs)
        self._ended = len(earlier)
        self._failed = sum(outcome.result is None for outcome in earlier)
        self._running: dict[Job, _Progress] = {}
        ended = {outcome.job for outcome in earlier}
        self._steps_left = sum(job.recipe.steps for job in jobs if job not in ended)
        self._started = self._shown = time.monotonic()
        self._steps_done = 0
        self._drawn = 0
        if earlier:
            for outcome in earlier:
                if outcome.result is None:
                    self._line(f"{self._label(outcome.job)}   failed: {outcome.error}")
            done = len(earlier) - self._failed
            self._line(f"{done} of {self._total} runs are finished from before")

    def progress(self, job: Job, step: int, **metrics: float) -> None:
        """A run has come to a step; its latest loss and test accuracy, where they are known."""
        if job not in self._running:
            # What an earlier process did says nothing about the speed of this one.
            self._running[job] = _Progress(first=step)
            self._steps_left -= step
        run = self._running[job]
        self._steps_done += step - run.step
        self._steps_left -= step - run.step
        run.step = step
        run.metrics |= metrics

    def ended(self, outcome: Outcome) -> None:
        """A run is finished, or has failed."""
        job = outcome.job
        run = self._running.pop(job, None)
        self._steps_left -= job.recipe.steps - (run.step if run else 0)
        self._ended += 1
        if outcome.result is None:
            self._failed += 1
            what = f"failed: {outcome.error}"
        else:
            result = outcome.result
            what = f"test accuracy {result.test_accuracy:>7.2%}   {_clock(result.seconds):>8}"
        width = len(str(self._total))
        self._line(f"[{self._ended:>{width}}/{self._total}] {self._label(job)}   {what}")

    def stopped(self, job: Job, step: int | None) -> None:
        """A run was stopped, its state after ``step`` steps saved; None if it had not begun."""
        self._running.pop(job, None)
        if step is not None:
            self._line(f"{self._label(job)}   stopped after step {step:,} of {job.recipe.steps:,}")

    def tick(self) -> None:
        """Show how things are, if it is time to."""
        now = time.monotonic()
        if now - self._shown < (_FRAME_SECONDS if self._live else _PLAIN_SECONDS):
            return
        self._shown = now
        if self._live:
            self._write(self._block())
        elif self._running:
            self._line(self._headline())

    def close(self) -> None:
        """Take the live lines away."""
        self._write([])

    def _block(self) -> list[str]:
        return [self._headline(), *(f"  {self._run_line(job, run)}" for job, run in self._running.items())]

    def _headline(self) -> str:
        elapsed = time.monotonic() - self._started
        text = f"{self._name}: {self._ended} of {self._total} runs done"
        if self._failed:
            text += f", {self._failed} failed"
        if self._running:
            text += f", {len(self._running)} running"
        text += f", {_clock(elapsed)}"
        if self._steps_done:
            text += f", about {_clock(elapsed * self._steps_left / self._steps_done)} left"
        return text

    def _run_line(self, job: Job, run: "_Progress") -> str:
        steps = job.recipe.steps
        filled = _BAR * run.step // steps
        text = f"{self._label(job)}  |{'█' * filled}{' ' * (_BAR - filled)}| {100 * run.step // steps:>3}%"
        text += f"  {run.speed():>4.0f} steps/s"
        if "loss" in run.metrics:
            text += f"  loss {run.metrics['loss']:.4f}"
        if "test_accuracy" in run.metrics:
            text += f"  test {run.metrics['test_accuracy']:.2%}"
        return text

    def _label(self, job: Job) -> str:
        return "  ".join(word.ljust(width) for word, width in zip(job.words, self._columns))

    def _line(self, text: str) -> None:
        """A line that stays, above those that are live."""
        self._write([], text + "\n")
        if not self._live:
            self._shown = time.monotonic()

    def _write(self, block: list[str], above: str = "") -> None:
        text = above
        if self._live:
            width, height = shutil.get_terminal_size()
            block = block[: height - 1]
            # Back to the first live line, and clear from there.
            back = f"\x1b[{self._drawn}F\x1b[J" if self._drawn else ""
            text = back + above + "".join(line[: width - 1] + "\n" for line in block)
            self._drawn = len(block)
        self._stream.write(text)
        self._stream.flush()


class _Progress:
    """Where a run is."""

    def __init__(self, first: int) -> None:
        self.first = self.step = first
        self.metrics: dict[str, float] = {}
        self._started = time.monotonic()

    def speed(self) -> float:
        """Steps a second since this process took it up."""
        return (self.step - self.first) / max(time.monotonic() - self._started, 1e-9)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
