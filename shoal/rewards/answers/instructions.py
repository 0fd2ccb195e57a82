"""The 25 instructions of IFEval (Zhou et al. 2023, arXiv 2311.07911) by Google's ids and keyword arguments.

The rules are those of the benchmark's checks, and differ only where those crash, draw a missing argument at random,
read a keyword as a regular expression, need downloaded data, or are passed by a text that has no letter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from shoal.rewards.answers.sentences import capital_words, split_sentences

Check = Callable[..., bool]
"""Takes a response that is not blank, and the instruction's keyword arguments."""

CONSTRAINED_RESPONSES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
POSTSCRIPTS = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
JSON_FENCES = ("```json", "```Json", "```JSON", "```")
WORD_END = set(".,?!'\"")

SHORT_TEXT = 12  # words
LONGEST_DETECTED = 20_000  # characters that are enough to know a language by
ENGLISH_WORDS = (
    "the a an of to and in is it you that he was for on are with as i his they be at this have from or had by we your "
    "not but what all were when there can she do how their if will each about up out them then many some so these "
    "would other into has more her two like him see time could no make than my its who our please"
)
FOREIGN_WORDS = (
    "der das und ist nicht ein eine ich wir sie mit auf guten wie geht es el los las una que por para con buenos como "
    "est le les des une je vous nous pas avec bonjour il che di una per ciao sono buongiorno een het niet og det ikke "
    "jag och inte eu voce uma nao bom dia ola estoy gracias hola mein dein morgen merci oui danke"
)
ENGLISH, FOREIGN = frozenset(ENGLISH_WORDS.split()), frozenset(FOREIGN_WORDS.split())

INSTRUCTIONS: dict[str, Check] = {}


def follows(instruction: str, arguments: Mapping[str, Any], response: str) -> bool:
    """Whether a response follows an instruction; a blank one follows none.

    Raises:
        ValueError: there is no such instruction, or an argument is missing or has no meaning.
    """
    if instruction not in INSTRUCTIONS:
        raise ValueError(f"there is no IFEval instruction {instruction!r}")
    given = {name: value for name, value in arguments.items() if value is not None}
    try:
        return bool(response.strip()) and INSTRUCTIONS[instruction](response, **given)
    except TypeError as error:
        raise ValueError(f"{instruction} cannot be checked with {given}: {error}") from error


def _instruction(name: str) -> Callable[[Check], Check]:
    def register(check: Check) -> Check:
        INSTRUCTIONS[name] = check
        return check

    return register


def _compare(count: int, relation: str, threshold: int) -> bool:
    if relation not in ("less than", "at least"):
        raise ValueError(f"the relation is 'less than' or 'at least', not {relation!r}")
    return count < threshold if relation == "less than" else count >= threshold


@_instruction("keywords:existence")
def _keywords(response: str, *, keywords: list[str]) -> bool:
    return all(keyword.lower() in response.lower() for keyword in keywords)


@_instruction("keywords:frequency")
def _keyword_frequency(response: str, *, keyword: str, frequency: int, relation: str) -> bool:
    return _compare(response.lower().count(keyword.strip().lower()), relation, frequency)


@_instruction("keywords:forbidden_words")
def _forbidden_words(response: str, *, forbidden_words: list[str]) -> bool:
    return not any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", response, re.IGNORECASE) for word in forbidden_words)


@_instruction("keywords:letter_frequency")
def _letter_frequency(response: str, *, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _compare(response.lower().count(letter.strip().lower()), let_relation, let_frequency)


@_instruction("language:response_language")
def _response_language(response: str, *, language: str) -> bool:
    return _language(response) == language


@_instruction("length_constraints:number_sentences")
def _number_sentences(response: str, *, num_sentences: int, relation: str) -> bool:
    return _compare(len(split_sentences(response)), relation, num_sentences)


@_instruction("length_constraints:number_paragraphs")
def _number_paragraphs(response: str, *, num_paragraphs: int) -> bool:
    paragraphs = [part.strip() for part in response.split("***")]
    inner = paragraphs[1:-1]
    return all(inner) and len(inner) + sum(map(bool, _ends(paragraphs))) == num_paragraphs


@_instruction("length_constraints:number_words")
def _number_words(response: str, *, num_words: int, relation: str) -> bool:
    return _compare(len(re.findall(r"\w+", response)), relation, num_words)


@_instruction("length_constraints:nth_paragraph_first_word")
def _nth_paragraph_first_word(response: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    paragraphs = [part.strip() for part in response.split("\n\n") if part.strip()]
    if not 0 < nth_paragraph <= num_paragraphs:
        raise ValueError(f"there is no paragraph {nth_paragraph} of {num_paragraphs}")
    if len(paragraphs) != num_paragraphs:
        return False
    word = paragraphs[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"').lower()
    end = next((position for position, letter in enumerate(word) if letter in WORD_END), len(word))
    return word[:end] == first_word.lower()


@_instruction("detectable_content:number_placeholders")
def _number_placeholders(response: str, *, num_placeholders: int) -> bool:
    return sum(_bracketed(line) for line in response.split("\n")) >= num_placeholders


@_instruction("detectable_content:postscript")
def _postscript(response: str, *, postscript_marker: str) -> bool:
    marker = postscript_marker.strip()
    return re.search(POSTSCRIPTS.get(marker, re.escape(marker.lower())), response.lower()) is not None


@_instruction("detectable_format:number_bullet_lists")
def _number_bullet_lists(response: str, *, num_bullets: int) -> bool:
    lines = [line.lstrip() for line in response.split("\n")]
    dashes = sum(line.startswith("-") for line in lines)
    return dashes + _stars(lines) == num_bullets


@_instruction("detectable_format:constrained_response")
def _constrained_response(response: str) -> bool:
    return any(option in response for option in CONSTRAINED_RESPONSES)


@_instruction("detectable_format:number_highlighted_sections")
def _number_highlighted_sections(response: str, *, num_highlights: int) -> bool:
    marked = re.findall(r"\*([^\n*]*)\*", response) + re.findall(r"\*\*([^\n*]*)\*\*", response)
    return sum(bool(text.strip()) for text in marked) >= num_highlights


@_instruction("detectable_format:multiple_sections")
def _multiple_sections(response: str, *, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(re.escape(section_spliter.strip()) + r"\s?\d+", response)) >= num_sections


@_instruction("detectable_format:json_format")
def _json_format(response: str) -> bool:
    text = response.strip()
    for fence in JSON_FENCES:
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


@_instruction("detectable_format:title")
def _title(response: str) -> bool:
    for line in response.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if start >= 0 and end > start + 2 and line[start:end].lstrip("<").rstrip(">").strip():
            return True
    return False


@_instruction("combination:two_responses")
def _two_responses(response: str) -> bool:
    parts = [part.strip() for part in response.split("******")]
    filled = parts[1:-1] + [part for part in _ends(parts) if part]
    return all(parts[1:-1]) and len(filled) == 2 and filled[0] != filled[1]


@_instruction("combination:repeat_prompt")
def _repeat_prompt(response: str, *, prompt_to_repeat: str) -> bool:
    return response.strip().lower().startswith(prompt_to_repeat.strip().lower())


@_instruction("startend:end_checker")
def _end_checker(response: str, *, end_phrase: str) -> bool:
    return response.strip().strip('"').lower().endswith(end_phrase.strip().lower())


@_instruction("startend:quotation")
def _quotation(response: str) -> bool:
    text = response.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


@_instruction("change_case:capital_word_frequency")
def _capital_word_frequency(response: str, *, capital_frequency: int, capital_relation: str) -> bool:
    return _compare(len(capital_words(response)), capital_relation, capital_frequency)


@_instruction("change_case:english_capital")
def _english_capital(response: str) -> bool:
    return response.isupper() and _is_english(response.lower())


@_instruction("change_case:english_lowercase")
def _english_lowercase(response: str) -> bool:
    return response.islower() and _is_english(response)


@_instruction("punctuation:no_comma")
def _no_comma(response: str) -> bool:
    return "," not in response


def check_instruction(instruction: str, arguments: Mapping[str, Any]) -> None:
    """Whether an instruction can be checked at all, on a response that says little.

    Raises:
        ValueError: there is no such instruction, or an argument is missing or has no meaning.
    """
    if instruction == "language:response_language":
        if not isinstance(arguments.get("language"), str):
            raise ValueError(f"{instruction} needs a language, not {arguments.get('language')!r}")
        return
    response = "1" if instruction.startswith("change_case:english") else "a\n\nb"
    try:
        follows(instruction, arguments, response)
    except AttributeError as error:
        raise ValueError(f"{instruction} cannot be checked with {dict(arguments)}: {error}") from error


def _is_english(text: str) -> bool:
    """Whether a text in small letters is English: what `langdetect` finds, and for short texts, of which it knows
    little, what it does not find to be another language by that language's letters or commonest words."""
    words = re.findall(r"[^\W\d_]+", text)
    if not words:
        return False
    if _language(text) == "en":
        return True
    if len(words) > SHORT_TEXT or not "".join(words).isascii():
        return sum(word in ENGLISH for word in words) * 4 >= len(words) and "".join(words).isascii()
    return not any(word in FOREIGN for word in words)


def _language(text: str) -> str | None:
    """The ISO 639-1 code of the likeliest language; None for a text in none. Equal texts give equal codes."""
    from langdetect import DetectorFactory, LangDetectException, detect  # noqa: PLC0415 - an optional package

    DetectorFactory.seed = 0
    try:
        return str(detect(text[:LONGEST_DETECTED]))
    except LangDetectException:
        return None


def _ends(parts: list[str]) -> list[str]:
    """The first and the last part; one where it is both."""
    return [parts[0], parts[-1]] if len(parts) > 1 else parts


def _bracketed(line: str) -> int:
    """How many [...] a line has, each from the first opening bracket to the next closing one."""
    count, position = 0, 0
    while (start := line.find("[", position)) >= 0 and (end := line.find("]", start)) >= 0:
        count, position = count + 1, end + 1
    return count


def _stars(lines: list[str]) -> int:
    """Bullets that begin with one star. A star that stands alone takes the next line as its text."""
    count, position = 0, 0
    while position < len(lines):
        line = lines[position]
        alone = line == "*" and position + 1 < len(lines)
        count += alone or (len(line) > 1 and line[0] == "*" and line[1] != "*")
        position += 2 if alone else 1
    return count
