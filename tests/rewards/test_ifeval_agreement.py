"""IFEval's checks against TorchRL's, on generated responses.

Where the two differ, by design, and so not generated here (each has a test of ours below):
- `number_sentences` and `capital_word_frequency` need NLTK's punkt there and crash without it; ours need no data.
- A keyword, a forbidden word, a section's name or a postscript's marker is a regular expression there ("C++" crashes,
  "a.b" finds "axb"); here it is text.
- An argument that is missing, or 0, or out of range is drawn at random there; here 0 is 0, and the rest is an error.
- A text without any letter is in every language there, and so earns `response_language`; here it is in none. Loosely,
  one such line at the end would do there (the other lines can be left out). A policy would find that out.
- English in capitals, or in few words, is not what langdetect makes of it: it takes "BUY FRESH BREAD TODAY" for German.
- Blank chunks between paragraphs are no paragraphs; there one in place of the nth makes it wrong.
- Language detection is seeded here, so that equal responses earn equal rewards.
"""

import random
from json import dumps

import pytest

from shoal.config.nodes.data import RewardConfig
from shoal.rewards.answers.instructions import INSTRUCTIONS, follows
from shoal.rewards.base import Submission
from shoal.rewards.scorer import Scorer
from shoal.rewards.verifiers.ifeval import ifeval, ifeval_loose, ifeval_torchrl, loose_variants
from shoal.types import Completion, Group, Prompt, Segment, StopReason

torchrl_checks = pytest.importorskip("torchrl.envs.llm.reward.ifeval._instructions_main")
pytest.importorskip("langdetect")
pytestmark = pytest.mark.extras

NEEDS_PUNKT = {"length_constraints:number_sentences", "change_case:capital_word_frequency"}
ENGLISH = {"change_case:english_capital", "change_case:english_lowercase"}
NOT_GENERATED = NEEDS_PUNKT | ENGLISH
LANGUAGE = "language:response_language"
QUESTION = "Write about the sea and its fish."
LINES = [
    "The sea is blue and the fish swim in it all day long.",
    "My answer is yes.",
    "my answer is no.",
    "* first point",
    "  * second point",
    "*",
    "** not a point",
    "- a dash",
    "---",
    "***",
    "******",
    "*highlighted text* and **double text** here",
    "**",
    "<<A title>>",
    "<<>>",
    "<< >> and <<x>>",
    "Section 1",
    "SECTION 2 goes on",
    "Section 3: more",
    "Put your [name] and [address] here, [date]",
    "[an open bracket",
    "P.S. I forgot this",
    "p. s. this too",
    "P.P.S. and this",
    "PPS none",
    "",
    "   ",
    "'Quoted' words, with commas",
    '"All of it quoted"',
    QUESTION,
    "Is there anything else I can help with?",
    "Any other questions?",
    "THE WHOLE LINE IS IN CAPITAL LETTERS AND THAT IS LOUD",
    "everything here is in lowercase letters and quiet",
    "El mar es azul y los peces nadan en él todo el día.",
    "Das Meer ist blau und die Fische schwimmen den ganzen Tag darin.",
    "La mer est bleue et les poissons y nagent toute la journée.",
    '{"sea": "blue", "fish": 3}',
    "```json",
    "```",
    "[1, 2, 3]",
    "42",
]
WHOLE = [
    '{"sea": "blue"}',
    '```json\n{"sea": ["blue", 1]}\n```',
    "```\n[1]\n```",
    '"The sea is blue and full of fish."',
    "one part ****** another part",
    "same ****** same",
    "first paragraph\n\nsecond one\n\nThird, and last",
    "first\n\n\n\nsecond",
    "para one *** para two *** para three",
    "*** para one *** para two ***",
    "the sea is blue and the fish are many and they swim in it",
    "THE SEA IS BLUE AND THE FISH ARE MANY AND THEY SWIM IN IT",
    "",
]


def response(rng: random.Random) -> str:
    if rng.random() < 0.3:
        return rng.choice(WHOLE)
    lines = [rng.choice(LINES) for _ in range(rng.randint(1, 9))]
    text = rng.choice(["\n", "\n", "\n\n"]).join(lines)
    ending = rng.choice(["", "", "", "\nAny other questions?"])
    return rng.choice([text, text, text.lower(), text.upper(), f'"{text}"', f"{QUESTION}\n{text}"]) + ending


def arguments(instruction: str, rng: random.Random) -> dict[str, object]:
    relation = rng.choice(["less than", "at least"])
    paragraphs = rng.randint(1, 3)
    return {
        "keywords:existence": {"keywords": rng.sample(["sea", "fish", "Blue", "commas", "point"], 2)},
        "keywords:frequency": {"keyword": rng.choice(["the", " sea", "Fish"]), "frequency": 3, "relation": relation},
        "keywords:forbidden_words": {"forbidden_words": rng.sample(["sea", "answer", "no", "title", "seas"], 2)},
        "keywords:letter_frequency": {
            "letter": rng.choice("aEsz"),
            "let_frequency": rng.randint(1, 12),
            "let_relation": relation,
        },
        "language:response_language": {"language": rng.choice(["en", "en", "es", "de", "fr"])},
        "length_constraints:number_paragraphs": {"num_paragraphs": paragraphs},
        "length_constraints:number_words": {"num_words": rng.randint(5, 40), "relation": relation},
        "length_constraints:nth_paragraph_first_word": {
            "num_paragraphs": paragraphs,
            "nth_paragraph": rng.randint(1, paragraphs),
            "first_word": rng.choice(["the", "First", "second", "write"]),
        },
        "detectable_content:number_placeholders": {"num_placeholders": rng.randint(1, 4)},
        "detectable_content:postscript": {"postscript_marker": rng.choice(["P.S.", "P.P.S", "Note"])},
        "detectable_format:number_bullet_lists": {"num_bullets": rng.randint(1, 4)},
        "detectable_format:number_highlighted_sections": {"num_highlights": rng.randint(1, 4)},
        "detectable_format:multiple_sections": {
            "section_spliter": rng.choice(["Section", "SECTION"]),
            "num_sections": rng.randint(1, 3),
        },
        "combination:repeat_prompt": {"prompt_to_repeat": QUESTION},
        "startend:end_checker": {"end_phrase": rng.choice(["Any other questions?", "quiet"])},
    }.get(instruction, {})


def examples(count: int) -> list[tuple[str, list[str], list[dict[str, object]]]]:
    rng = random.Random(20260101)
    names = sorted(set(INSTRUCTIONS) - NOT_GENERATED)
    made = []
    for index in range(count):
        chosen = [names[index % len(names)], *rng.sample(names, rng.randint(0, 3))]
        text = response(rng)
        while LANGUAGE in chosen and any(map(has_no_letter, loose_variants(text))):
            text = response(rng)
        made.append((text, chosen, [arguments(name, rng) for name in chosen]))
    return made


def has_no_letter(text: str) -> bool:
    return bool(text.strip()) and not any(map(str.isalpha, text))


EXAMPLES = examples(690)  # 30 for each of the 23 instructions that run there


def test_the_instructions_are_the_25_of_the_paper() -> None:
    registry = pytest.importorskip("torchrl.envs.llm.reward.ifeval._instructions_registry")
    assert set(INSTRUCTIONS) == set(registry.INSTRUCTION_DICT)
    assert len(INSTRUCTIONS) == 25


def test_strict_and_loose_verdicts_agree_with_torchrls() -> None:
    outcomes = set()
    for text, names, kwargs in EXAMPLES:
        theirs = torchrl_checks._InputExample(key=0, instruction_id_list=names, prompt=QUESTION, kwargs=kwargs)
        strict = torchrl_checks._test_instruction_following_strict(theirs, text).follow_instruction_list
        loose = torchrl_checks._test_instruction_following_loose(theirs, text).follow_instruction_list
        rules = list(zip(names, kwargs, strict=True))
        assert [follows(*rule, text) for rule in rules] == strict, (text, names, kwargs)
        variants = loose_variants(text)
        ours = [any(follows(*rule, variant) for variant in variants) for rule in rules]
        assert ours == loose, (text, names, kwargs)
        outcomes |= {(name, followed) for name, followed in zip(names, strict, strict=True)}
    # The generated responses are no empty test: every instruction is followed by some and broken by some.
    assert outcomes == {(name, followed) for name in set(INSTRUCTIONS) - NOT_GENERATED for followed in (True, False)}


def test_the_torchrl_reward_agrees_with_torchrls_through_the_scorer() -> None:
    scorer_module = pytest.importorskip("torchrl.envs.llm.reward.ifeval._scorer")
    torch = pytest.importorskip("torch")
    theirs = scorer_module.IfEvalScorer()
    rng = random.Random(7)
    groups, wanted = [], []
    for index, (text, names, kwargs) in enumerate(EXAMPLES[:230]):
        think = rng.choice([[], ["thought"], ["thought", "again"]])
        answers = rng.choice([[], [text], [text], [text], [text, "other"]])
        completion = "".join(f"<think>{part}</think>" for part in think)
        completion += "".join(f"<answer>{part}</answer>" for part in answers)
        row = torchrl_checks._InputExample(key=0, instruction_id_list=names, prompt=QUESTION, kwargs=kwargs)
        first = answers[0] if answers else ""
        strict = torchrl_checks._test_instruction_following_strict(row, first)
        loose = torchrl_checks._test_instruction_following_loose(row, first)
        score = scorer_module.IFEvalScoreData(
            prompt_level_strict_acc=torch.tensor([strict.follow_all_instructions]),
            inst_level_strict_acc=torch.tensor(strict.follow_instruction_list),
            prompt_level_loose_acc=torch.tensor([loose.follow_all_instructions]),
            inst_level_loose_acc=torch.tensor(loose.follow_instruction_list),
        )
        wanted.append(float(theirs.default_reward_aggregator(score, think_blocks=think, answer_blocks=answers)))
        truth = {"instruction_id_list": names, "kwargs": kwargs}
        prompt = Prompt(str(index), [], ground_truth=truth, verifiers=["ifeval_torchrl"])
        groups.append(Group(str(index), [Completion([Segment([], [], [], [])], StopReason.STOP, completion)], prompt))
    with Scorer(RewardConfig(), {"ifeval_torchrl": 1.0}) as ours:
        ours.score(groups)
    for group, reward in zip(groups, wanted, strict=True):
        assert group.completions[0].reward == pytest.approx(reward, abs=1e-6), group.completions[0].text


def rule(name: str, **kwargs: object) -> dict[str, object]:
    return {"instruction_id_list": [name], "kwargs": [kwargs]}


def test_torchrls_published_cases() -> None:
    # Measured on torchrl 0.14.1: perfect, both tags but nothing followed, one of two met, two answers, loose only.
    no_comma, quotation = rule("punctuation:no_comma"), rule("startend:quotation")
    both = {"instruction_id_list": ["punctuation:no_comma", "startend:quotation"], "kwargs": [{}, {}]}
    cases = [
        ("<think>t</think><answer>fine</answer>", no_comma, 1.15),
        ("<think>t</think><answer>a, b</answer>", no_comma, 0.15),
        ("<think>t</think><answer>fine</answer>", both, 0.35),
        ("<answer>fine</answer><answer>fine</answer>", no_comma, 1.0),
        ('<answer>intro\n"quoted"</answer>', quotation, 0.4),
    ]
    for text, truth, reward in cases:
        assert ifeval_torchrl(Submission(text, truth)) == pytest.approx(reward)


def test_keywords_are_text_and_not_patterns() -> None:
    assert follows("keywords:existence", {"keywords": ["C++"]}, "I like c++ a lot")
    assert not follows("keywords:existence", {"keywords": ["a.b"]}, "axb")
    assert not follows("keywords:forbidden_words", {"forbidden_words": ["C++"]}, "I like C++ a lot")
    assert follows("keywords:forbidden_words", {"forbidden_words": ["sea"]}, "the season of seas")


def test_arguments_that_are_missing_make_the_score_missing_and_zero_is_zero() -> None:
    with pytest.raises(ValueError, match="number_words cannot be checked"):
        follows("length_constraints:number_words", {"num_words": None, "relation": "at least"}, "some words")
    with pytest.raises(ValueError, match="there is no IFEval instruction 'length:none'"):
        follows("length:none", {}, "some words")
    assert follows("keywords:letter_frequency", {"letter": "z", "let_frequency": 0, "let_relation": "at least"}, "abc")
    assert not follows("detectable_format:number_bullet_lists", {"num_bullets": 0}, "* one")


def test_a_text_without_letters_is_in_no_language() -> None:
    assert not follows("language:response_language", {"language": "en"}, "1234 5678")
    assert not follows("change_case:english_capital", {}, "1234")


def test_sentences_and_capital_words_need_no_data() -> None:
    text = "Dr. Smith paid $3.50 to J. Doe at example.com. Did he? Yes! NASA and the U.S. ARMY agreed"
    assert follows("length_constraints:number_sentences", {"num_sentences": 4, "relation": "at least"}, text)
    assert follows("length_constraints:number_sentences", {"num_sentences": 5, "relation": "less than"}, text)
    assert follows("change_case:capital_word_frequency", {"capital_frequency": 4, "capital_relation": "at least"}, text)


def test_ground_truths_come_as_dicts_lists_json_and_python() -> None:
    google = {"instruction_id_list": ["punctuation:no_comma", "startend:quotation"], "kwargs": [{}, {}]}
    other = [{"instruction_id": ["punctuation:no_comma", "startend:quotation"], "kwargs": [None, None]}]
    for truth in (google, other, str(other), str(google), dumps(other)):
        assert ifeval(Submission("plain words", truth)) == 0.5
        assert ifeval(Submission("plain words", truth), whole=True) == 0.0
    assert ifeval(Submission("<think>a, b</think>plain", rule("punctuation:no_comma"))) == 1.0
    assert ifeval(Submission("intro, first\nplain", rule("punctuation:no_comma"))) == 0.0
    assert ifeval_loose(Submission("intro, first\nplain", rule("punctuation:no_comma"))) == 1.0
    for nothing in ({}, [], "{}", {"instruction_id_list": []}):
        with pytest.raises(ValueError, match="names no instructions"):
            ifeval(Submission("plain", nothing))
