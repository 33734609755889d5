from __future__ import annotations

import io
import threading
from contextlib import suppress
from dataclasses import dataclass

import pytest

from builder.progress import Progress, Silent, Terminal, human_size, human_time


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def last(stream: io.StringIO) -> str:
    """What the live line shows now."""
    return stream.getvalue().rpartition("\x1b[K")[2]


def test_a_live_line_has_percent_bytes_rate_and_time_left() -> None:
    stream, clock = io.StringIO(), Clock()
    with Terminal(stream, clock, live=True).task("fetch", 100_000_000) as task:
        assert last(stream) == "fetch  0%  0 B of 100.0 MB"
        clock.now += 2
        task.advance(20_000_000)
        assert last(stream) == "fetch  20%  20.0 MB of 100.0 MB  10.0 MB/s  0:08 left"


def test_a_live_line_is_drawn_at_most_ten_times_a_second() -> None:
    stream, clock = io.StringIO(), Clock()
    with Terminal(stream, clock, live=True).task("fetch", 1000) as task:
        for _ in range(1024):
            clock.now += 1 / 1024
            task.advance(1)
    assert 5 <= stream.getvalue().count("fetch") <= 12, "the first, ten more, and the summary"


def test_the_rate_is_that_of_the_last_seconds() -> None:
    stream, clock = io.StringIO(), Clock()
    with Terminal(stream, clock, live=True).task("fetch", 10_000_000) as task:
        for _ in range(60):
            clock.now += 1
            task.advance(100_000)
        assert "100.0 kB/s  0:40 left" in last(stream)
        for _ in range(10):
            clock.now += 1
            task.advance(1000)
        assert "1.0 kB/s" in last(stream)


def test_tasks_at_once_are_summed_by_unit() -> None:
    stream, clock = io.StringIO(), Clock()
    terminal = Terminal(stream, clock, live=True)
    with terminal.task("assemble", 4, "layers") as layers, terminal.task("torch", 600) as one:
        with terminal.task("numpy", 400) as two:
            clock.now += 1
            layers.advance(1)
            one.advance(100)
            clock.now += 1
            two.advance(400)
            assert last(stream).startswith("assemble  25%  1 of 4 layers")
            assert " · torch and 1 more  50%  500 B of 1.0" in last(stream)
        clock.now += 1
        one.advance(0)
        assert " · torch  50%  500 B of 1.0 kB" in last(stream), "what ended still counts"


def test_an_unknown_total_shows_what_is_done() -> None:
    stream, clock = io.StringIO(), Clock()
    with Terminal(stream, clock, live=True).task("resolve") as task:
        assert last(stream) == "resolve  0:00"
        clock.now += 3
        task.advance(0)
        assert last(stream) == "resolve  0:03"
        clock.now += 1
        task.advance(2000)
        assert last(stream).startswith("resolve  2.0 kB")


def test_progress_can_go_back() -> None:
    stream, clock = io.StringIO(), Clock()
    with Terminal(stream, clock, live=True).task("fetch", 100) as task:
        clock.now += 1
        task.advance(80)
        clock.now += 1
        task.advance(-80)
        assert last(stream) == "fetch  0%  0 B of 100 B"


def test_a_note_does_not_mix_with_the_live_line() -> None:
    stream, clock = io.StringIO(), Clock()
    terminal = Terminal(stream, clock, live=True)
    with terminal.task("fetch", 10):
        terminal.note("a note")
    text = stream.getvalue()
    assert "\r\x1b[Ka note\n" in text
    assert text.endswith("\r\x1b[K"), "a quick task leaves nothing"


def test_foreign_names_do_not_steer_the_terminal() -> None:
    stream = io.StringIO()
    terminal = Terminal(stream, Clock(), live=False)
    terminal.note("a\x1b[2Jb\nc\rd\u202e")
    assert stream.getvalue() == "a?[2Jb?c?d?\n"


def test_without_a_terminal_there_is_a_line_now_and_then() -> None:
    stream, clock = io.StringIO(), Clock()
    with Terminal(stream, clock).task("fetch", 1_000_000) as task:
        for _ in range(96):
            clock.now += 0.125
            task.advance(10_000)
    assert stream.getvalue().splitlines() == [
        "fetch  40%  400.0 kB of 1.0 MB  80.0 kB/s  0:08 left",
        "fetch  80%  800.0 kB of 1.0 MB  80.0 kB/s  0:02 left",
        "fetch  960.0 kB in 12.0 s  80.0 kB/s",
    ]
    assert "\x1b" not in stream.getvalue()


@pytest.mark.parametrize(("seconds", "lines"), [(0.5, 0), (2, 1)])
def test_only_what_took_time_gets_a_last_line(seconds: float, lines: int) -> None:
    stream, clock = io.StringIO(), Clock()
    with Terminal(stream, clock).task("fetch", 10):
        clock.now += seconds
    assert len(stream.getvalue().splitlines()) == lines


def test_a_failed_task_has_no_last_line() -> None:
    stream, clock = io.StringIO(), Clock()
    with suppress(ZeroDivisionError), Terminal(stream, clock).task("fetch", 10):
        clock.now += 4
        raise ZeroDivisionError
    assert stream.getvalue() == ""


def test_colour_is_for_terminals_that_want_it() -> None:
    for live, color, coloured in [(True, True, True), (True, False, False), (False, True, False)]:
        stream, clock = io.StringIO(), Clock()
        with Terminal(stream, clock, live=live, color=color).task("fetch", 10) as task:
            clock.now += 6
            task.advance(1)
        assert ("\x1b[36m" in stream.getvalue()) == coloured


def test_no_advance_is_lost_among_threads() -> None:
    stream, clock = io.StringIO(), Clock()
    with Terminal(stream, clock, live=True).task("fetch", 40_000) as task:

        def work() -> None:
            for _ in range(10_000):
                task.advance(1)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        clock.now += 1
        task.advance(0)
        assert "100%  40.0 kB of 40.0 kB" in last(stream)


def test_a_reader_that_is_gone_does_not_end_the_work() -> None:
    stream = io.StringIO()
    stream.close()
    terminal: Progress = Terminal(stream, Clock(), live=False)
    terminal.note("nobody hears this")


def test_silent_says_nothing() -> None:
    silent: Progress = Silent()
    silent.note("hush")
    with silent.task("fetch", 1) as task:
        task.advance(1)


def test_sizes_and_times() -> None:
    assert [human_size(n) for n in (0, 999, 1000, 999_950, 3_400_000_000, 5e12)] == [
        *("0 B", "999 B", "1.0 kB", "1.0 MB", "3.4 GB", "5.0 TB"),
    ]
    assert [human_time(n) for n in (0, 59.6, 3599, 3723)] == ["0:00", "1:00", "59:59", "1:02:03"]
