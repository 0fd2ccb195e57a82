"""What goes wrong is said in words, once, and again only when it lasts."""

from __future__ import annotations

from shoal.monitor.warnings import AGAIN_AFTER, Warnings


def test_half_of_a_step_cut_off_is_said_once_and_again_when_it_lasts_or_comes_back():
    watch = Warnings()
    assert watch.sentences(1, {"stop/length": 0.49}) == []
    [text] = watch.sentences(2, {"stop/length": 0.95})
    assert text.startswith("95% of the completions were cut off") and "sampling.max_new_tokens" in text
    assert watch.sentences(3, {"stop/length": 0.95}) == []
    assert watch.sentences(4, {"stop/length": 0.0}) == []
    assert len(watch.sentences(5, {"stop/length": 0.5})) == 1
    said = [step for step in range(6, 200) if watch.sentences(step, {"stop/length": 0.5})]
    assert said == [5 + AGAIN_AFTER, 5 + 2 * AGAIN_AFTER, 5 + 3 * AGAIN_AFTER]


def test_the_same_reward_for_ten_steps_is_said_in_the_tenth():
    watch = Warnings()
    said = [step for step in range(1, 12) if watch.sentences(step, {"reward/mean": 0.25})]
    assert said == [10]
    assert Warnings().sentences(1, {"reward/mean": 0.25}) == []
    changing = Warnings()
    assert not any(changing.sentences(step, {"reward/mean": step % 2}) for step in range(30))


def test_a_mismatch_that_grows_is_said_and_one_that_is_small_or_steady_is_not():
    growing, steady, small = Warnings(), Warnings(), Warnings()
    said = []
    for step in range(1, 31):
        assert steady.sentences(step, {"sampler/abs_difference": 0.03}) == []
        assert small.sentences(step, {"sampler/abs_difference": 1e-6 * 1.3**step}) == []
        said += growing.sentences(step, {"sampler/abs_difference": 0.01 * 1.2**step})
    assert len(said) == 1 and "nats a token" in said[0]
