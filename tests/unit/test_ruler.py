"""Tasks against RULER's own definitions (Hsieh et al., 2024; NVIDIA/RULER at c3f5e3b), by hand.

Prompts are held to the text that RULER's templates give, written out here, and outputs to scores
worked out by its definition: the share of references found, case ignored, as percent of two digits.
"""

import re

import pytest
from tokenizers import Tokenizer

from kvbudget.options import filled
from kvbudget.sources.random import byte_tokenizer
from kvbudget.tasks import registry
from kvbudget.tasks.request import Request

PASSAGES = [f"In the year {n} there was peace, and {n * 7} came to see it." for n in range(4000)]
#: Kind and options, the pattern of RULER's prompt with its answer prefix, and what stands in front.
PROMPTS = {
    "one needle": (
        ("niah", {}),
        r"A special magic number is hidden within the following text\. Make sure to memorize it\."
        r" I will quiz you about the number afterwards\.\n"
        r"(?P<context>.*One of the special magic numbers for (?P<key>\S+) is: (?P<value>\d{7})\..*)"
        r"\nWhat is the special magic number for (?P=key) mentioned in the provided text\?"
        r" The special magic number for (?P=key) mentioned in the provided text is",
    ),
    "four values": (
        ("niah", {"values": 4}),
        r"Some special magic numbers are hidden within the following text\. Make sure to memorize"
        r" it\. I will quiz you about the numbers afterwards\.\n"
        r"(?P<context>(.*One of the special magic numbers for (?P<key>\S+) is: \d{7}\.){4}.*)"
        r"\nWhat are all the special magic numbers for (?P=key) mentioned in the provided text\?"
        r" The special magic numbers for (?P=key) mentioned in the provided text are",
    ),
    "variables": (
        ("vt", {}),
        r"Memorize and track the chain\(s\) of variable assignment hidden in the following text\."
        r"\n\n(?P<context>.*VAR (?P<first>[A-Z]{5}) = (?P<value>\d{5})\n.*"
        r"VAR [A-Z]{5} = VAR (?P=first)\n.*)\n"
        r"Question: Find all variables that are assigned the value (?P=value) in the text above\."
        r" Answer: According to the chain\(s\) of variable assignment in the text above, 5"
        r" variables are assigned the value (?P=value), they are:",
    ),
    "common words": (
        ("cwe", {}),
        r"Below is a numbered list of words\. In these words, some appear more often than others\."
        r" Memorize the ones that appear most often\.\n(?P<context>1\. \S+ 2\. \S+ 3\. .*)\n"
        r"Question: What are the 10 most common words in the above list\?"
        r" Answer: The top 10 words that appear most often in the list are:",
    ),
    "frequent words": (
        ("fwe", {}),
        r"Read the following coded text and track the frequency of each coded word\. Find the three"
        r" most frequently appeared coded words\. (?P<context>[a-z.]+( [a-z.]+)+)\n"
        r"Question: Do not provide any explanation\. Please ignore the dots '\.\.\.\.'\. What are"
        r" the three most frequently appeared words in the above coded text\?"
        r" Answer: According to the coded text above, the three most frequently appeared words"
        r" are:",
    ),
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """One without a chat template, as RULER's base models have."""
    return byte_tokenizer()


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_read_as_rulers(name, tokenizer):
    (kind, given), pattern = PROMPTS[name]
    options = registry.options_from(kind, filled(name, given, registry.options_of(kind)))
    request = Request(tokenizer, PASSAGES, 3000, contexts=3, questions=1, seed=1, split="test")
    for context in registry.load(kind).make(request, options):
        (question,) = context.questions
        text = tokenizer.decode(context.ids + question.ids, clean_up_tokenization_spaces=False)
        found = re.fullmatch(rf"<s>(?P<example>.*){pattern}", text, re.DOTALL)
        assert found, text
        # Of variables and common words a solved example stands in front.
        assert bool(found["example"]) == (kind in ("vt", "cwe"))
        if kind == "niah":
            needles = re.findall(r"is: (\d{7})\.", found["context"])
            assert sorted(needles) == sorted(question.references)


#: Output, references, and RULER's `string_match_all` of it, in percent: hits over references.
SCORES = [
    ("The numbers are 1234567, 7654321, and 1111111.", ["1234567", "7654321"], 100.0),
    ("1234567", ["1234567", "7654321", "1111111"], 33.33),
    ("ABCDE abcdf", ["abcde", "ABCDF", "ABCDG", "ABCDH", "ABCDI"], 40.0),
    ("1. Olive 2. olives", ["olive", "live", "liver"], 66.67),
    ("12345", ["1234567"], 0.0),
    ("91234567890", ["1234567"], 100.0),
]


@pytest.mark.parametrize(("output", "references", "percent"), SCORES)
@pytest.mark.parametrize("kind", ["niah", "vt", "cwe", "fwe"])
def test_scores_are_rulers(kind, output, references, percent):
    assert round(100 * registry.load(kind).score(output, references), 2) == percent


@pytest.mark.parametrize("kind", ["niah", "vt", "cwe", "fwe"])
def test_a_score_is_the_mean_over_samples(kind):
    """RULER takes the mean of the samples' shares, not the share of all references."""
    score = registry.load(kind).score
    shares = [score("a", ["a", "b", "c", "d"]), score("x", ["x"])]
    assert 100 * sum(shares) / len(shares) == 62.5
