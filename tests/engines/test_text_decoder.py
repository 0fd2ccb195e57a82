"""The text that verifiers see of sampled ids."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from shoal.engines.stopping import text_decoder
from shoal.tasks.story import story_tokenizer

TOKENIZER = story_tokenizer()


def ids_of(text: str) -> list[int]:
    return [int(number) for number in TOKENIZER(text)["input_ids"]]


def test_equal_ids_in_turn_have_one_text_and_others_their_own():
    decode = text_decoder(TOKENIZER)
    first, second = ids_of("<answer>3</answer>"), ids_of("<answer>4</answer>")
    texts = [TOKENIZER.decode(ids) for ids in (first, second)]
    assert texts[0] != texts[1]
    assert [decode(ids) for ids in (first, list(first), second, tuple(second), first, [])] == [
        texts[0],
        texts[0],
        texts[1],
        texts[1],
        texts[0],
        "",
    ]


def test_ids_that_were_changed_after_they_were_decoded_are_decoded_again():
    decode, ids = text_decoder(TOKENIZER), ids_of("3")
    before = decode(ids)
    ids[:] = ids_of("4")
    assert decode(ids) == TOKENIZER.decode(ids) != before


def test_threads_that_decode_at_one_time_get_their_own_texts():
    decode = text_decoder(TOKENIZER)
    asked = [ids_of(f"<answer>{number % 20}</answer>") for number in range(400)]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(decode, asked)) == [TOKENIZER.decode(ids) for ids in asked]
