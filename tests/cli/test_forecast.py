"""What the dry run forecasts of asynchronous training."""

from __future__ import annotations

import pytest

from shoal.cli.forecast import forecast, forecast_lines, number_of_engines
from shoal.config import ShoalConfig, load_config

ASYNC = ["source=async", "engine=vllm_server", "weight_sync=broadcast", "run.prompts_per_step=4"]
TIMES = ["source.simulate.token_seconds=0.1", "source.simulate.tokens=100", "source.simulate.step_seconds=20"]


def made(*changes: str) -> ShoalConfig:
    return load_config("story", [*ASYNC, "sampling.max_new_tokens=4000", *changes])


def test_sync_has_no_forecast():
    assert list(forecast_lines(load_config("story", []))) == []


def test_without_times_it_says_which_keys_give_them():
    assert "set source.simulate.token_seconds" in list(forecast_lines(made()))[-1]


def test_the_table_has_the_configured_row_marked_and_more_staleness_is_faster():
    lines = list(forecast_lines(made(*TIMES)))
    rows = [line.split() for line in lines[3:]]
    assert [line.split()[:2] for line in lines if line.endswith("as configured")] == [["4", "1"]]
    speeds = {(int(row[0]), int(row[1])): float(row[2]) for row in rows}
    assert 1 < speeds[1, 1] < speeds[2, 1] < speeds[4, 1] < speeds[8, 2]


def test_weights_that_are_published_seldom_leave_out_what_would_wait_for_ever():
    rows = [line.split()[:2] for line in forecast_lines(made(*TIMES, "source.lead=2", "weight_sync.every=3"))][3:]
    assert rows == [["2", "2"], ["4", "2"], ["8", "2"]]


def test_engines_that_are_full_take_longer_and_a_second_one_helps():
    free = forecast(made(*TIMES), 4, 1, 1).seconds
    full = made(*TIMES, "source.simulate.at_once=8")
    assert forecast(full, 4, 1, 1).seconds > forecast(full, 4, 1, 2).seconds > 0.99 * free
    assert list(forecast_lines(full))[-1].endswith("with 2 engines")


def test_no_completion_is_longer_than_the_limit():
    # Every completion is cut at 10 tokens of 0.1 s: steps of 1 s and 20 s.
    short = made(*TIMES, "sampling.max_new_tokens=10")
    assert forecast(short, 0, 0, 1).seconds == pytest.approx(300 * 21, rel=0.01)


def test_processes_of_the_engine_are_counted():
    assert number_of_engines(made("engine=torch", "engine.processes=3")) == 3
    assert number_of_engines(made("engine.vllm.servers=2")) == 2
