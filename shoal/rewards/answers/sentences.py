"""Sentences and words of a text, without downloaded data."""

from __future__ import annotations

import re

# Ends with . ! or ?, perhaps more than one of them, and whatever closes a quotation or a bracket.
ENDS_SENTENCE = re.compile(r"(?P<word>[^\s.!?]*)(?P<stop>[.!?…]+)[\"'”’)\]*_]*$")
LONGEST_WORD = 200  # characters at its end that are looked at
INITIALS = re.compile(r"(?:[A-Za-z]\.)+")
TITLES = "mr mrs ms dr prof st gen rep sen gov capt lt col mt vs fig approx"
SHORTENED = "jr sr etc inc ltd co corp no vol dept est ft jan feb mar apr jun jul aug sep sept oct nov dec"
BEGINNINGS = "A An The This That These Those He She It They We You I But And In On At If When"
STARTERS = frozenset(BEGINNINGS.split())
ALWAYS_GO_ON = frozenset(TITLES.split())
ABBREVIATIONS = ALWAYS_GO_ON.union(SHORTENED.split())


def split_sentences(text: str) -> list[str]:
    """The sentences, each ending with its . ! or ?; the rest after the last one is a sentence too.

    A stop ends no sentence after a title or initial ("Dr. Who", "J. Smith"), after a list's number ("1. Flour"), after
    an abbreviation or an ellipsis that goes on in lower case, and within a word (3.5, example.com).
    """
    sentences: list[str] = []
    current: list[str] = []
    words = text.split()
    for position, word in enumerate(words):
        current.append(word)
        following = words[position + 1] if position + 1 < len(words) else ""
        if _ends_sentence(word, following, first=len(current) == 1):
            sentences.append(" ".join(current))
            current = []
    if current:
        sentences.append(" ".join(current))
    return [sentence for sentence in sentences if any(character.isalnum() for character in sentence)]


def _ends_sentence(word: str, following: str, *, first: bool) -> bool:
    word = word[-LONGEST_WORD:]  # a search from each of many letters would take for ever
    match = ENDS_SENTENCE.search(word)
    if match is None:
        return False
    if set(match["stop"]) & set("!?"):
        return True
    goes_on = following[:1].islower()
    if "…" in match["stop"] or len(match["stop"]) > 1:
        return not goes_on
    bare = word.lstrip("\"'“‘([*_")
    plain = bare.replace(".", "").lower().rstrip("\"'”’)]*_")
    if first and plain.isdigit() and following:
        return False
    if plain in ALWAYS_GO_ON and following:
        return False
    if INITIALS.fullmatch(bare) and following:
        # "J. Smith", "the U.S. Army"; but "in the U.S. They left" are two.
        return following in STARTERS
    return not (goes_on and plain in ABBREVIATIONS)


def capital_words(text: str) -> list[str]:
    """Words whose letters are all capitals; a hyphenated word is one."""
    return [word for word in re.findall(r"\w[\w'’.\-]*", text) if word.isupper()]
