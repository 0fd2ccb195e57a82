import re
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from shoal.config import ShoalConfig
from shoal.tasks.dataset import build_task
from shoal.tasks.story import (
    HELD_OUT_SHARE,
    KNOWN_VERBS,
    LARGEST,
    NAMES,
    SIGNS,
    THINGS,
    Problem,
    make_demonstration,
    make_problem,
    story_rows,
    story_tokenizer,
)

EXAMPLE = Problem("Dee", "cats", 16, (("drops", 3), ("eats", 3)))
seeds = st.integers(0, 10**9)


def test_a_problem_reads_and_is_answered_as_in_the_documentation() -> None:
    assert EXAMPLE.question == "Dee has 16 cats drops 3 eats 3 How many?"
    assert EXAMPLE.answer() == "<think>16-3=13;13-3=10</think><answer>10</answer>"


def test_there_are_eight_verbs_half_of_them_add_and_two_are_taught() -> None:
    assert sorted(SIGNS.values()) == [-1] * 4 + [1] * 4
    assert sorted(SIGNS[verb] for verb in KNOWN_VERBS) == [-1, 1]


@given(seed=seeds, held_out=st.booleans())
def test_results_are_small_and_never_negative(seed: int, held_out: bool) -> None:
    results = make_problem(Random(seed), held_out=held_out).results()
    assert 2 <= len(results) <= 4
    assert min(results) >= 0
    assert max(results) <= LARGEST


@given(seed=seeds)
def test_a_demonstration_is_consistent_whatever_sign_its_verbs_have(seed: int) -> None:
    problem, answer = make_demonstration(Random(seed))
    steps = re.findall(r"(\d+)([+-])(\d+)=(\d+)", answer)
    assert [int(amount) for _, _, amount, _ in steps] == [amount for _, amount in problem.changes]
    value = problem.start
    for before, sign, amount, after in steps:
        assert int(before) == value
        value += int(amount) if sign == "+" else -int(amount)
        assert int(after) == value
        assert 0 <= value <= LARGEST
    assert answer.endswith(f"</think><answer>{value}</answer>")


def test_demonstrations_teach_the_known_verbs_and_say_nothing_about_the_others() -> None:
    random = Random(0)
    added = {verb: [0, 0] for verb in SIGNS}
    for _ in range(6000):
        problem, answer = make_demonstration(random)
        signs = re.findall(r"\d([+-])", answer)
        for (verb, _), sign in zip(problem.changes, signs, strict=True):
            added[verb][0] += sign == "+"
            added[verb][1] += 1
    shares = {verb: plus / count for verb, (plus, count) in added.items()}
    for verb, share in shares.items():
        if verb in KNOWN_VERBS:
            assert share == (1.0 if SIGNS[verb] > 0 else 0.0)
        else:
            # About 1,700 uses each, in about 1,500 problems of one sign: a standard deviation of 0.013.
            assert abs(share - 0.5) < 0.06, (verb, share)


@given(seed=seeds, thing=st.sampled_from(THINGS), name=st.sampled_from(NAMES))
def test_a_problem_is_on_one_side_of_the_split_whoever_has_what(seed: int, thing: str, name: str) -> None:
    for held_out in (False, True):
        problem = make_problem(Random(seed), held_out=held_out)
        assert problem.held_out is held_out
        assert Problem(name, thing, problem.start, problem.changes).held_out is held_out
    assert make_demonstration(Random(seed))[0].held_out is False


def test_training_and_held_out_problems_are_disjoint() -> None:
    def arithmetic(question: str) -> str:
        _, _, start, _, *changes = question.split()
        return " ".join([start, *changes])

    sides = [{arithmetic(row["question"]) for row in story_rows(evaluation)} for evaluation in (False, True)]
    assert not sides[0] & sides[1]
    assert len(sides[1]) > 800  # a thousand held-out problems, few of them asked twice


def test_about_an_eighth_of_all_problems_is_held_out() -> None:
    random = Random(0)
    problems = [
        Problem("", "", random.randint(0, 20), ((random.choice(list(SIGNS)), random.randint(1, 6)),) * 2)
        for _ in range(8000)
    ]
    share = sum(problem.held_out for problem in problems) / len(problems)
    assert abs(share - 1 / HELD_OUT_SHARE) < 0.03


def test_the_rows_are_the_same_every_time() -> None:
    first, again = (story_rows(False) for _ in range(2))
    assert first == again
    # Pinned: ids seed sampling, and the accuracies of two versions can be compared only on the same problems.
    task = build_task(ShoalConfig(), story_tokenizer())
    prompt = task.train[0]
    assert (prompt.id, prompt.messages[0]["content"], prompt.ground_truth) == PINNED
    assert task.evaluation[0].id == "story/held_out/0"
    assert len({prompt.id for prompt in task.train}) == len(first)


PINNED = ("story/train/0", "Gus has 7 cakes drops 5 How many?", "2")


@given(seed=seeds)
def test_problems_and_demonstrations_survive_the_tokenizer(seed: int) -> None:
    tokenizer = story_tokenizer()
    problem, answer = make_demonstration(Random(seed))
    text = problem.question + answer + tokenizer.eos_token
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text
    # The question and its answer are tokenised apart in training; together they give the same ids.
    assert tokenizer(problem.question)["input_ids"] + tokenizer(answer)["input_ids"] == ids[:-1]


def test_the_vocabulary_is_small_and_what_it_lacks_is_unknown() -> None:
    tokenizer = story_tokenizer()
    assert 90 < len(tokenizer) < 120
    assert tokenizer("I do not know")["input_ids"].count(tokenizer.unk_token_id) == 4
    assert tokenizer.eos_token_id not in (tokenizer.pad_token_id, None)


def test_an_answer_ends_within_forty_tokens() -> None:
    tokenizer = story_tokenizer()
    random = Random(0)
    answers = [make_problem(random, held_out=False).answer() for _ in range(500)]
    assert max(len(ids) for ids in tokenizer(answers)["input_ids"]) + 1 <= 40
