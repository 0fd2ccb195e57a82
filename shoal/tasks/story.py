"""The default task: word problems made on the spot, whose verbs must be learnt from the reward.

`Dee has 16 cats drops 3 eats 3 How many?` is answered by `<think>16-3=13;13-3=10</think><answer>10</answer>`.
Each of eight verbs adds or takes away. The demonstrations of the warm start give two of them their true meaning and
the other six a random one, consistent within a demonstration: format and arithmetic can be imitated, the six verbs
can only be found out by being rewarded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from random import Random

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from shoal.tasks.layouts.base import Example, Layout, Row, question
from shoal.types import Prompt

SIGNS = {"finds": 1, "buys": 1, "gets": 1, "wins": 1, "drops": -1, "eats": -1, "gives": -1, "loses": -1}
KNOWN_VERBS = ("finds", "drops")
# fmt: off
NAMES = (
    "Ada", "Amy", "Ann", "Ben", "Bob", "Cal", "Dan", "Dee", "Eli", "Eva", "Fay", "Gil", "Gus", "Hal", "Ida",
    "Ivy", "Jan", "Jim", "Joe", "Kay", "Kim", "Leo", "Lou", "Max", "Meg", "Mia", "Ned", "Pam", "Ray", "Sam",
)
THINGS = (
    "apples", "bags", "balls", "bats", "beads", "bells", "bikes", "birds", "boats", "books", "boxes", "cakes", "caps",
    "cards", "cats", "coins", "cups", "dogs", "dolls", "eggs", "fans", "figs", "fish", "forks", "hats", "keys", "kites",
    "maps", "nuts", "pens",
)
# fmt: on
LARGEST = 20
LARGEST_CHANGE = 6
NUMBER_OF_CHANGES = (1, 2, 2, 3, 3, 3)  # drawn evenly from these
HELD_OUT_SHARE = 8  # one problem in eight is held out
TRAIN_PROBLEMS = 10_000
HELD_OUT_PROBLEMS = 1_000

END, PAD, UNKNOWN = "<end>", "<pad>", "<unk>"
NUMBERS = [str(number) for number in range(LARGEST + 1)]
TAGS = ("<think>", "</think>", "<answer>", "</answer>")


@dataclass(frozen=True)
class Problem:
    """A start, and verbs with amounts. `signs` says which verbs add (1) and which take away (-1)."""

    name: str
    thing: str
    start: int
    changes: tuple[tuple[str, int], ...]

    @property
    def question(self) -> str:
        story = " ".join(f"{verb} {amount}" for verb, amount in self.changes)
        return f"{self.name} has {self.start} {self.thing} {story} How many?"

    @property
    def held_out(self) -> bool:
        """Whether the problem is for evaluation: decided by its numbers and verbs, so that a problem that differs
        only in who has what is on the same side."""
        digest = sha256(f"{self.start}{self.changes}".encode()).digest()
        return digest[0] % HELD_OUT_SHARE == 0

    def results(self, signs: Mapping[str, int] = SIGNS) -> list[int]:
        """What is there at the start and after each change."""
        values = [self.start]
        for verb, amount in self.changes:
            values.append(values[-1] + signs[verb] * amount)
        return values

    def answer(self, signs: Mapping[str, int] = SIGNS) -> str:
        """The worked answer, under the given meaning of the verbs."""
        values = self.results(signs)
        steps = [
            f"{before}{'+' if signs[verb] > 0 else '-'}{amount}={after}"
            for before, after, (verb, amount) in zip(values, values[1:], self.changes, strict=False)
        ]
        return f"<think>{';'.join(steps)}</think><answer>{values[-1]}</answer>"


def make_problem(random: Random, *, held_out: bool, signs: Mapping[str, int] = SIGNS) -> Problem:
    """Draws a problem whose every result is between 0 and LARGEST under `signs`, on the asked side of the split."""
    while True:
        changes = tuple(
            (random.choice(list(SIGNS)), random.randint(1, LARGEST_CHANGE))
            for _ in range(random.choice(NUMBER_OF_CHANGES))
        )
        values = Problem("", "", 0, changes).results(signs)
        lowest, highest = -min(values), LARGEST - max(values)
        if lowest > highest:
            continue
        problem = Problem(random.choice(NAMES), random.choice(THINGS), random.randint(lowest, highest), changes)
        if problem.held_out is held_out:
            return problem


def make_demonstration(random: Random) -> tuple[Problem, str]:
    """A training problem and a worked answer in which only `KNOWN_VERBS` mean what they mean."""
    signs = {verb: sign if verb in KNOWN_VERBS else random.choice((1, -1)) for verb, sign in SIGNS.items()}
    problem = make_problem(random, held_out=False, signs=signs)
    return problem, problem.answer(signs)


def story_tokenizer() -> PreTrainedTokenizerFast:
    """Words, numbers, tags and signs: about 100 tokens. Words hold their spaces, so that text decodes to itself."""
    words = [*NAMES, *(f" {word}" for word in (*THINGS, "How", "many")), *(f" {word} " for word in ("has", *SIGNS))]
    vocabulary = [PAD, END, UNKNOWN, *TAGS, *NUMBERS, *"+-=;?", *words]
    tokenizer = Tokenizer(WordLevel({token: index for index, token in enumerate(vocabulary)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex(r"</?[a-z]+>| ?[A-Za-z]+( (?=\d))?|\d+|."), behavior="isolated"
    )
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )


def story_rows(evaluation: bool) -> list[Row]:
    """The problems of one side of the split: the same in every run, so that accuracies can be compared."""
    split, count = ("held_out", HELD_OUT_PROBLEMS) if evaluation else ("train", TRAIN_PROBLEMS)
    problems = (make_problem(Random(f"{split}/{index}"), held_out=evaluation) for index in range(count))
    return [{"question": problem.question, "answer": str(problem.results()[-1])} for problem in problems]


def read_story(row: Row) -> Example:
    return Example(question(row["question"]), row["answer"])


def right_answer(prompt: Prompt) -> str:
    """An answer to a story prompt that earns the full reward."""
    return f"<answer>{prompt.ground_truth}</answer>"


LAYOUT = Layout(
    read=read_story,
    columns=(("question",), ("answer",)),
    verifiers={"exact_answer": 1.0},
    demonstrate=right_answer,
    make=story_rows,
)
