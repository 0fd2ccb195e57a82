import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from made_groups import completion, group
from matplotlib.image import imread
from numpy.typing import NDArray

from shoal.config import ShoalConfig
from shoal.monitor.curve import BLUE, GREY, ORANGE, draw_curve, smoothed
from shoal.monitor.monitor import Monitor
from shoal.monitor.rows import to_line


def write_rows(run_dir: Path, rows: Sequence[dict[str, float | None]]) -> None:
    (run_dir / "metrics.jsonl").write_text("".join(to_line(row) for row in rows))


def pixels(path: Path, colour: str) -> int:
    """How many pixels have exactly this colour; lines are drawn opaque in their middle."""
    picture = np.round(imread(path)[:, :, :3] * 255).astype(int)
    wanted = np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)])
    return int((picture == wanted).all(axis=2).sum())


def test_the_curve_shows_the_reward_and_the_evaluations(tmp_path: Path):
    steps = [{"step": step, "reward/mean": step / 20, "groups/zero_variance": 0.5} for step in range(1, 21)]
    write_rows(tmp_path, [{"step": 0, "eval/accuracy": 0.1}, *steps, {"step": 20, "eval/accuracy": 0.9}])
    path = draw_curve(tmp_path)
    assert path == tmp_path / "curve.png"
    assert imread(path).shape[:2] == (720, 1200)
    # A line of 2.2 points at 150 dpi is about 5 pixels thick and crosses most of 1200 pixels; a dot is 15 wide.
    assert pixels(path, BLUE) > 2000
    assert pixels(path, ORANGE) > 200


def test_without_evaluations_there_is_no_accuracy_in_the_curve(tmp_path: Path):
    write_rows(tmp_path, [{"step": step, "reward/mean": 0.5} for step in range(1, 5)])
    path = draw_curve(tmp_path)
    assert path is not None
    assert pixels(path, ORANGE) == 0
    assert pixels(path, BLUE) > 1000


def test_the_share_without_signal_fills_the_lower_panel(tmp_path: Path):
    filled = {}
    for share in (0.0, 1.0):
        rows = [{"step": step, "reward/mean": 0.5, "groups/zero_variance": share} for step in range(1, 11)]
        write_rows(tmp_path, rows)
        path = draw_curve(tmp_path)
        assert path is not None
        filled[share] = int((np.abs(imread(path)[580:640, 200:1100, :3] - fill_colour()).max(axis=2) < 0.02).sum())
    assert filled[0.0] == 0
    assert filled[1.0] > 20_000


def fill_colour() -> NDArray[np.float64]:
    """GREY at an opacity of .45 on white."""
    grey = np.array([int(GREY[start : start + 2], 16) / 255 for start in (1, 3, 5)])
    return 0.45 * grey + 0.55


def test_a_run_of_one_evaluation_and_no_step_has_a_curve(tmp_path: Path):
    write_rows(tmp_path, [{"step": 0, "eval/accuracy": 0.4}])
    path = draw_curve(tmp_path)
    assert path is not None
    assert pixels(path, ORANGE) > 100


def test_a_step_whose_reward_is_null_is_left_out(tmp_path: Path):
    write_rows(tmp_path, [{"step": 1, "reward/mean": None}, {"step": 2, "reward/mean": 0.5}])
    assert draw_curve(tmp_path) is not None


def test_a_run_without_rows_has_no_curve(tmp_path: Path):
    assert draw_curve(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_the_smoothed_line_is_a_centred_mean_that_shortens_at_the_ends():
    values = np.array([0.0, 3.0, 6.0, 9.0])
    # Window 3: (0+3)/2, (0+3+6)/3, (3+6+9)/3, (6+9)/2.
    np.testing.assert_allclose(smoothed(values, 3), [1.5, 3.0, 6.0, 7.5])
    np.testing.assert_array_equal(smoothed(values, 1), values)


def test_smoothing_fewer_values_than_the_window_is_their_mean():
    np.testing.assert_allclose(smoothed(np.array([1.0, 3.0]), 2), [1.0, 2.0])


@pytest.mark.parametrize("wanted", [True, False])
def test_the_monitor_draws_the_curve_at_the_end_where_it_is_asked_for(
    cfg: ShoalConfig, open_monitor: Callable[[], Monitor], tmp_path: Path, wanted: bool
):
    cfg.monitor.curve = wanted
    monitor = open_monitor()
    monitor.record(1, [group("a", [completion(1.0), completion(0.0)])], {})
    monitor.close("finished")
    assert (tmp_path / "run" / "curve.png").exists() is wanted


def test_drawing_leaves_pyplots_global_state_alone(tmp_path: Path):
    write_rows(tmp_path, [{"step": 1, "reward/mean": 0.5}])
    draw_curve(tmp_path)
    assert "matplotlib.pyplot" not in sys.modules
