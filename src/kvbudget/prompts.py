"""How text becomes the tokens that a model reads: openings, chat turns, questions."""

import datetime
from typing import Any, Protocol

from kvbudget.errors import UserError

_MARK = "\x00"
#: The day that chat templates are told it is. Some print it, and a prompt that changes by the day
#: is another sample tomorrow. It is the one that Llama's own templates print where they know none.
TODAY = datetime.datetime(2024, 7, 26)
#: What templates ask for the day: the function that transformers gives them, and variables by which
#: a caller may tell them instead, as Llama 3.1 and 3.2 call theirs.
_DAY = {"strftime_now": TODAY.strftime, "date_string": f"{TODAY:%d %b %Y}"}


class Tokenizer(Protocol):
    """What is used of a tokenizer of transformers."""

    bos_token_id: int | None
    chat_template: str | None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def apply_chat_template(self, conversation: list[dict[str, str]], **kwargs: Any) -> str: ...


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a text alone, without the tokens that open or close a sequence."""
    return tokenizer.encode(text, add_special_tokens=False)


def opening(tokenizer: Tokenizer) -> list[int]:
    """The tokens that the tokenizer itself puts before any text (BOS, or none)."""
    bos = tokenizer.bos_token_id
    return [bos] if tokenizer.encode("")[:1] == [bos] else []


def prompt_frame(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Token ids that open a prompt and that end the user's turn.

    With a chat template they are what it writes before and after the user's message; without one
    the opening is the tokenizer's own and the end is empty: the model just continues a text.
    """
    if not tokenizer.chat_template:
        return opening(tokenizer), []
    message = [{"role": "user", "content": _MARK}]
    text = tokenizer.apply_chat_template(
        message, tokenize=False, add_generation_prompt=True, **_DAY
    )
    head, mark, tail = text.partition(_MARK)
    if not mark:
        raise UserError("the model's chat template does not print the user's message")
    # A template writes the opening tokens itself if the model wants them.
    return encode(tokenizer, head), encode(tokenizer, tail)


def ask(tokenizer: Tokenizer, question: str, prefix: str) -> list[int]:
    """Token ids of a question, the end of the user's turn and the first words of the answer."""
    if not tokenizer.chat_template:
        return encode(tokenizer, f"{question} {prefix}")
    _, tail = prompt_frame(tokenizer)
    return encode(tokenizer, question) + tail + encode(tokenizer, prefix)
