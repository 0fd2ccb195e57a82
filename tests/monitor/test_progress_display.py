import io
import logging
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from shoal.monitor.progress import SPARKS, ProgressDisplay, duration, sparkline
from shoal.types import Completion, Segment, StopReason

METRICS = {"reward/mean": 0.4567, "length/mean": 21.25, "kl_ref/k3": 0.00123, "tokens_per_second/step": 12345.6}


def a_completion(tokens: int) -> Completion:
    return Completion([Segment([1], [5] * tokens, [0.0] * tokens, [True] * tokens)], StopReason.STOP)


def display(mode: str, *, terminal: bool = False, total: int = 10, line_every: float = 0.0) -> ProgressDisplay:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    return ProgressDisplay(mode, total, console=console, line_every=line_every)


def written(shown: ProgressDisplay) -> str:
    assert isinstance(shown.console.file, io.StringIO)
    return shown.console.file.getvalue()


def test_a_line_of_a_step_has_the_headline_numbers():
    shown = display("auto")
    shown.begin_steps()
    shown.step(1, METRICS)
    assert written(shown).startswith("step 1/10  reward 0.457  length 21.2  KL 0.0012  tokens/s 12,346  left ")
    assert written(shown).count("\n") == 1


def test_without_a_reference_the_kl_is_that_to_the_sampler():
    shown = display("lines")
    shown.step(1, {"reward/mean": 0.5, "sampler/kl_k3": 2e-5})
    assert "reward 0.500  sampler KL 2e-05  left" in written(shown)


def test_lines_are_rare_but_the_first_and_the_last_step_always_show():
    shown = display("lines", line_every=60.0)
    for step in range(1, 11):
        shown.step(step, METRICS)
    assert [line.split()[1] for line in written(shown).splitlines()] == ["1/10", "10/10"]


def test_lines_hold_no_escape_codes():
    shown = display("auto")
    shown.step(1, METRICS)
    shown.evaluation(1, {"accuracy": 0.5})
    shown.close()
    assert "\x1b" not in written(shown)


def test_auto_is_live_on_a_terminal_and_lines_elsewhere():
    assert display("auto", terminal=True).mode == "live"
    assert display("auto", terminal=False).mode == "lines"
    assert display("off", terminal=True).mode == "off"


def test_the_live_display_ends_with_the_last_numbers_and_the_curve_of_rewards():
    shown = display("live", terminal=True, total=3)
    for step in range(1, 4):
        with_reward = {**METRICS, "reward/mean": step / 4}
        shown.phase("rollout")
        shown.step(step, with_reward)
    shown.evaluation(3, {"accuracy": 0.625})
    shown.close()
    last = written(shown)
    for part in ("3/3", "0.750", "21.2", "0.0012", "12,346", "0.625", "▁▅█", "0s left"):
        assert part in last, part


def test_off_shows_nothing_and_logs_messages(caplog: pytest.LogCaptureFixture):
    shown = display("off", terminal=True)
    with caplog.at_level(logging.INFO, logger="shoal.monitor.progress"):
        shown.step(1, METRICS)
        with shown.task("warm start", 2) as advance:
            advance()
        shown.message("every group failed")
    assert written(shown) == ""
    logged = [record.getMessage() for record in caplog.records if record.name.startswith("shoal.")]
    assert logged == ["every group failed"]


def test_messages_are_not_read_as_markup():
    shown = display("lines")
    shown.message("prompt [bold] at [/tmp/x]")
    assert written(shown) == "prompt [bold] at [/tmp/x]\n"


def test_a_message_longer_than_the_terminal_stays_one_line_of_a_log():
    shown = display("lines")
    shown.message("word " * 100)
    assert written(shown).count("\n") == 1


@pytest.mark.parametrize("mode", ["lines", "live"])
def test_another_long_phase_shows_its_progress_and_its_end(mode: str):
    shown = display(mode, terminal=mode == "live")
    with shown.task("warm start", 300) as advance:
        for _ in range(3):
            advance(100)
    shown.close()
    assert re.search(r"warm start: 300 of 300 in \d+s", written(shown))
    if mode == "lines":
        assert "warm start 200/300" in written(shown)


def test_a_phase_that_had_nothing_to_do_says_nothing():
    shown = display("lines")
    with shown.task("warm start", 300):
        pass
    assert written(shown) == ""


def test_a_phase_that_fails_ends_its_progress_where_it_was():
    shown = display("lines")
    with pytest.raises(ValueError), shown.task("warm start", 300) as advance:
        advance(7)
        raise ValueError
    assert "warm start: 7 of 300" in written(shown)


def test_the_time_left_is_that_of_the_steps_of_this_start():
    shown = display("off", total=10)
    shown.resume(6, [0.1, 0.2], 0.5)
    started = time.monotonic()
    shown.begin_steps()
    time.sleep(0.1)
    shown.step(7, METRICS)
    # One step took .1 s or a little more, three are left; the six of earlier starts do not count.
    assert 0.3 <= shown.seconds_left() <= 3 * (time.monotonic() - started)
    assert shown.rewards == [0.1, 0.2, 0.4567]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (59.4, "59s"), (59.6, "1m00s"), (185, "3m05s"), (7620, "2h07m")]
)
def test_durations_read_as_people_write_them(seconds: float, text: str):
    assert duration(seconds) == text


def test_a_sparkline_goes_from_the_smallest_to_the_largest_value():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == SPARKS
    assert sparkline([]) == ""
    # Equal shares of two values each: means .5 and 2.5.
    assert sparkline([0, 1, 2, 3], width=2) == "▁█"


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200), st.integers(1, 40))
def test_a_sparkline_is_as_wide_as_asked_or_as_there_are_values(values: list[float], width: int):
    line = sparkline(values, width)
    assert len(line) == min(width, len(values))
    assert set(line) <= set(SPARKS)


@pytest.mark.parametrize("mode", ["lines", "live"])
def test_a_long_rollout_shows_its_completions_and_tokens_before_any_step(mode: str):
    shown = display(mode, terminal=mode == "live")
    shown.sampling_every = 0.0
    finished = shown.sampling("step 1, rollout", 3)
    for tokens in (1000, 2000):
        finished(a_completion(tokens))
    shown._refresh()
    if mode == "live":
        assert shown._live is not None
        shown._live.refresh()
    assert "step 1, rollout: 2 of 3 completions, 3,000 tokens" in written(shown)
    shown.close()


def test_a_short_rollout_writes_no_line():
    shown = display("lines")
    finished = shown.sampling("evaluation", 1)
    finished(a_completion(1))
    assert written(shown) == ""
