"""How text becomes the tokens that a model reads: openings, chat turns, questions."""

import datetime
from typing import Any, Protocol

from kvbudget.errors import UserError

_MARK = "\x00"
#: The day that chat templates are told it is. Some print it, and a prompt that changes by the day
#: is another sample tomorrow. It is the one that Llama's own templates print where they know none.
TODAY = datetime.datetime(2024, 7, 26)
#: What they may ask for it: a variable, as Llama 3.1 and 3.2 call it, or a function. No caller can
#: give them functions, so this one is written in their own language. Jinja drops the line's end.
_DATE_STRING = f"{TODAY:%d %b %Y}"
_DIRECTIVES = {each: TODAY.strftime(f"%{each}") for each in "aAbBcdfGHIjmMpSuUVwWxXyYZ"}
_DIRECTIVES |= {f"-{each}": TODAY.strftime(f"%{each}").lstrip("0") or "0" for each in "dmHIMSjy"}
_STRFTIME_NOW = (
    "{%- macro strftime_now(format) -%}"
    f"{{%- set parts = {_DIRECTIVES} -%}}"
    "{%- for each in format.split('%') -%}"
    "{%- if loop.first -%}{{ each }}"
    "{%- elif each[:2] in parts -%}{{ parts[each[:2]] ~ each[2:] }}"
    "{%- else -%}{{ parts[each[:1]] ~ each[1:] }}"
    "{%- endif -%}{%- endfor -%}"
    "{%- endmacro %}\n"
)


class Tokenizer(Protocol):
    """What is used of a tokenizer of transformers."""

    bos_token_id: int | None
    chat_template: str | None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def get_chat_template(self) -> str: ...

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
    template = tokenizer.get_chat_template()
    if "strftime_now" in template:
        template = _STRFTIME_NOW + template
    text = tokenizer.apply_chat_template(
        message,
        chat_template=template,
        tokenize=False,
        add_generation_prompt=True,
        date_string=_DATE_STRING,
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
