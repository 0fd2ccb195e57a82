"""Tier bubblewrap holds what means harm, as root and as another user; honest programs beside it come out right."""

from __future__ import annotations

import os
from functools import cache

import pytest
from hostile_programs import HOSTILE
from other_user import NOBODY, RUN_HOSTILE, run_script_as

US = "whoever runs the tests"


@cache
def report_of(user: str) -> dict:
    return run_script_as(None if user == US else user, RUN_HOSTILE)


@pytest.fixture(params=[US, pytest.param(NOBODY, marks=pytest.mark.slow)])
def report(request, bubblewrap):
    if request.param == NOBODY and os.geteuid() != 0:
        pytest.skip("only root can start the sandbox as another user")
    return report_of(request.param)


def test_there_are_at_least_40_hostile_programs():
    assert len(HOSTILE) >= 40


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_program_is_contained(report, name):
    result = report["results"][name]
    assert result["status"] in HOSTILE[name][0], result
    # 2.5 s are allowed; the rest is for starting, ending and a busy machine.
    assert result["seconds"] < 15


def test_honest_programs_beside_hostile_ones_come_out_right(report):
    assert len(report["honest"]) >= 20
    assert all(report["honest"])


def test_nothing_is_left_behind(report):
    assert report["after"]["processes"] == []
    assert report["after"] == report["before"]


def test_it_ran_as_the_user_that_was_meant(report, request):
    wanted = os.getuid() if "whoever" in request.node.name else int(NOBODY)
    assert report["uid"] == wanted
