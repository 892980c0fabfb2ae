"""The progress line of a training run: one live line on a terminal, plain lines at calm intervals elsewhere.

    step 245/1230  4:10 left  loss 0.512  f1_macro 0.7421  5,120 tok/s  1.22 GiB  epoch 2/10  2.4 steps/s  lr 1.0e-03

Nothing here waits for the device: loss and counts are on the host, peak memory is asked of the allocator, and only when
a line is due.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console, ConsoleOptions
from rich.live import Live
from rich.text import Text

from harness.console import Terminal
from harness.machine import device

LOSSES = 20
"""`loss` is the mean of so many steps, those without a finite one aside."""
_DECAY = 0.98
"""Weight of the past in the means of seconds and tokens per step: about the last 50 steps."""
_SLACK, _SLACK_SECONDS = 0.1, 2.0
"""The end that was told is told again until a new estimate is off by a tenth of what is left, and by two seconds."""
_LIVE_SECONDS, _CALM_SECONDS, _CALMEST_SECONDS = 0.2, 10.0, 60.0


@dataclass(frozen=True)
class Pace:
    """A run in steps: all of them, those of an epoch, and those from one validation to the next."""

    total: int
    per_epoch: int
    per_validation: int

    def validations_after(self, step: int) -> int:
        """How many are still to come: at every multiple, and after the last step."""
        return -(-self.total // self.per_validation) - step // self.per_validation if step < self.total else 0


class _Mean:
    """An exponentially weighted mean, right from the first value on."""

    def __init__(self) -> None:
        self._sum = self._weight = 0.0

    def add(self, value: float) -> None:
        """One more value."""
        self._sum = self._sum * _DECAY + value
        self._weight = self._weight * _DECAY + 1.0

    @property
    def value(self) -> float | None:
        """None: there was no value."""
        return self._sum / self._weight if self._weight else None


class Estimate:
    """How long steps and validations take, and when the run ends; of the steps of this process alone."""

    def __init__(self, pace: Pace, now: float) -> None:
        self.pace, self._mark, self._end = pace, now, math.inf
        self.step_seconds, self.validation_seconds, self.tokens = _Mean(), _Mean(), _Mean()

    def took_step(self, num_tokens: int, now: float) -> None:
        """A step ended that began when whatever followed the last one was over."""
        self.step_seconds.add(now - self._mark)
        self.tokens.add(num_tokens)
        self._mark = now

    def followed(self, now: float, *, by_validation: bool) -> None:
        """What follows a step is over. Checkpoints between validations are left out: seconds in many minutes."""
        if by_validation:
            self.validation_seconds.add(now - self._mark)
        self._mark = now

    @property
    def tokens_per_second(self) -> float | None:
        """Real tokens, without padding, by the seconds of training alone."""
        tokens, seconds = self.tokens.value, self.step_seconds.value
        return tokens / seconds if tokens is not None and seconds else None

    def left(self, step: int, now: float) -> tuple[float | None, bool]:
        """Seconds until the last step and its validation, and whether validations are counted in.

        They are from the first one of this process on. What is told falls with the clock: it does not follow every
        change of the pace, only one that matters. Early stopping can only make it shorter.
        """
        seconds, each = self.step_seconds.value, self.validation_seconds.value
        if seconds is None:
            return None, False
        waiting = self.pace.validations_after(step)
        passed = min(now - self._mark, max(seconds, each or 0.0))  # of the step or the validation that is under way
        left = max(0.0, (self.pace.total - step) * seconds + waiting * (each or 0.0) - passed)
        if abs(self._end - now - left) > max(_SLACK * left, _SLACK_SECONDS):
            self._end = now + left
        return max(0.0, self._end - now), each is not None or not waiting


class ProgressLine:
    """What is shown of a training run, and when; silent on a quiet terminal and on all processes but the first."""

    def __init__(
        self, terminal: Terminal, pace: Pace, metric: str, *, step: int = 0, score: float | None = None,
        clock: Callable[[], float] = time.monotonic, memory: Callable[[], float] = device.peak_memory_gib,
    ) -> None:  # fmt: skip
        """A line that goes on after `step` steps, the last validation having given `score`.

        Args:
            terminal: where it is shown.
            pace: how long the run is.
            metric: the validation metric that selects the checkpoint; its split is not shown.
            step: steps that were taken before, maybe by another process: they say nothing of the pace.
            score: the last score of `metric`, if there is one.
            clock: seconds.
            memory: peak memory in GiB; read when a line is due.
        """
        self.terminal, self.pace, self.metric, self.score = terminal, pace, metric.rpartition("/")[2], score
        self._clock, self._memory, self._gib = clock, memory, 0.0
        self._step, self._loss, self._learning_rate = step, math.nan, 0.0
        self._losses: deque[float] = deque(maxlen=LOSSES)
        self._begun = self._shown = clock()
        self.estimate = Estimate(pace, self._begun)
        self._live = Live(self, console=terminal.console, transient=True) if terminal.is_live else None

    def __enter__(self) -> ProgressLine:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def take(self, step: int, loss: float, num_tokens: int, learning_rate: float) -> None:
        """Count a step; show a line if one is due."""
        now = self._clock()
        self.estimate.took_step(num_tokens, now)
        self._step, self._learning_rate = step, learning_rate
        if math.isfinite(loss):
            self._losses.append(loss)
            self._loss = sum(self._losses) / len(self._losses)
        if self.due(now):
            self._shown, self._gib = now, self._memory()
            if not self._live:
                self.terminal.say(fit(self.fields(now), self.terminal.console.width))

    def followed(self, score: float | None) -> None:
        """What follows a step is over; `score`: of the validation that was part of it."""
        self.estimate.followed(self._clock(), by_validation=score is not None)
        self.score = self.score if score is None else score

    def due(self, now: float) -> bool:
        """Whether new values are to be shown: five times a second, or plainly after 10 seconds, in long runs 60."""
        if not self.terminal.speaks or self.terminal.quiet:
            return False
        calm = min(max(_CALM_SECONDS, (now - self._begun) / 10), _CALMEST_SECONDS)
        return now - self._shown >= (_LIVE_SECONDS if self._live else calm)

    def fields(self, now: float) -> list[str]:
        """What the line says, the most important first."""
        left, is_whole = self.estimate.left(self._step, now)
        epochs, epoch = -(-self.pace.total // self.pace.per_epoch), max(1, -(-self._step // self.pace.per_epoch))
        seconds, tokens = self.estimate.step_seconds.value, self.estimate.tokens_per_second
        told = [
            f"step {self._step}/{self.pace.total}",
            "" if left is None else f"{duration(left)} left" + ("" if is_whole else " + validation"),
            f"loss {self._loss:.3f}" if math.isfinite(self._loss) else "",
            "" if self.score is None else f"{self.metric} {self.score:.4f}",
            "" if tokens is None else f"{tokens:,.0f} tok/s",
            f"{self._gib:.2f} GiB" if self._gib else "",
            f"epoch {epoch}/{epochs}",
            f"{1 / seconds:.3g} steps/s" if seconds else "",
            f"lr {self._learning_rate:.1e}" if self._learning_rate else "",
        ]
        return [field for field in told if field]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        yield Text(fit(self.fields(self._clock()), options.max_width - 1), no_wrap=True, overflow="crop", end="")


def fit(fields: list[str], width: int) -> str:
    """As many fields, from the first on, as go into a line of `width` columns; at least the first, cut if need be."""
    line = fields[0]
    for field in fields[1:]:
        if len(line) + 2 + len(field) > width:
            break
        line += f"  {field}"
    return line[:width]


def duration(seconds: float) -> str:
    """`0:42`, `12:05`, `3:07:00`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
