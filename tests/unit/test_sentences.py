"""Sentences end where readers of their script see it."""

import pytest

from kvbudget.sentences import GRADES, ends

SENTENCES, CLAUSES, WORDS = GRADES
ENDED = [
    ["He said: 'Go!'", " Pi is 3.14.", ' "Why?"', " (So.)", " And on…"],
    ["«Où es-tu?»", " Il répondit."],
    ["「行け！」", "彼は言った。", "なぜ？"],
    ["वह गया।", " क्यों?", " श्लोक॥"],
    ["ذهب.", " لماذا؟", " وہ گیا۔"],
    ["ሄደ።"],
]


@pytest.mark.parametrize("parts", ENDED)
def test_ends_of_sentences(parts):
    text = "".join(parts)
    cuts = ends(SENTENCES, text)
    assert [text[a:b] for a, b in zip([0, *cuts], cuts, strict=False)] == parts


def test_clauses_and_words_where_no_sentence_ends():
    assert ends(SENTENCES, "one, two; three") == []
    assert ends(CLAUSES, "one, two; three 10:30 4,5") == [4, 9]
    assert ends(CLAUSES, "一，二；三") == [2, 4]
    assert ends(WORDS, "one two") == [3]
    assert ends(WORDS, "acgt") == []
