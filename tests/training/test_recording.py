from pathlib import Path

from shoal.training.recording import GroupRecording
from shoal.types import Completion, Group, Prompt, Segment, StopReason


def full_group() -> Group:
    segment = Segment([1, 2], [3, 4], [-0.5, -1.25], [True, False], [-0.5, -1.0], [1.0, 0.0])
    completion = Completion(
        [segment], StopReason.LENGTH, "text", [(0, 3), (1, 4)], 0.5, {"exact": 0.5, "format": None}, {"kl": 0.1}, -1.0
    )
    prompt = Prompt("p", [1, 2], {"answer": 3}, ["exact"], [{"role": "user", "content": "?"}], "here")
    return Group("p", [completion, Completion([], StopReason.ERROR, info={"error": "gone"})], prompt, 2)


def test_a_recorded_group_comes_back_as_it_was(tmp_path: Path) -> None:
    groups = [full_group(), Group("foreign", [Completion([], StopReason.ABORT)])]
    GroupRecording(tmp_path).write(4, groups)
    assert GroupRecording(tmp_path).read(4) == groups


def test_steps_without_a_recording_are_none_and_the_last_is_known(tmp_path: Path) -> None:
    recording = GroupRecording(tmp_path)
    assert recording.last_step() == 0
    for step in (2, 11):
        recording.write(step, [])
    assert recording.read(3) is None
    assert recording.last_step() == 11
