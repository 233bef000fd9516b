"""Prompts are the same whatever the day."""

import datetime

import pytest
from transformers.utils import chat_template_utils

from kvbudget.prompts import ask, encode, prompt_frame
from kvbudget.sources.random import byte_tokenizer

USER = "{{ messages[0].content }}<|eot_id|>"
#: How templates come by the day, and what they print.
TEMPLATES = {
    # Llama 3.2
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    '{%- set date_string = strftime_now("%d %b %Y") %}{%- else %}'
    '{%- set date_string = "26 Jul 2024" %}{%- endif %}{%- endif %}'
    '{{- "Today Date: " + date_string + "\\n" }}': "Today Date: 26 Jul 2024\n",
    # Llama 3.1, which a caller tells the day
    '{%- if not date_string is defined %}{%- set date_string = "1 Jan 1970" %}{%- endif %}'
    '{{- "Today Date: " + date_string + "\\n" }}': "Today Date: 26 Jul 2024\n",
    # gpt-oss
    '{{- "Current date: " + strftime_now("%Y-%m-%d") + "\\n" }}': "Current date: 2024-07-26\n",
    # Granite
    "{%- set today = strftime_now('%B %d, %Y') %}{{- today + '.\\n' }}": "July 26, 2024.\n",
    # Mistral Small: the day before, by hand; hours, as some have them
    "{{- strftime_now('%d')|int - 1 }} {{ strftime_now('%H:%M:%S') + '\\n' }}": "25 00:00:00\n",
    # Blanks at the beginning stay as transformers leaves them, and no zero is printed.
    "\n {{- strftime_now('%-d.%-m.%y, %A') }}\n": "26.7.24, Friday\n",
    "\n\n  {%- if true %}{{ strftime_now('') }} x{% endif %}": " x",
    "": "",
}


@pytest.fixture
def tomorrow(monkeypatch):
    """Calling it moves the clock that templates see by default."""

    class Tomorrow(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.datetime(2031, 2, 3, 4, 5, 6)

    def move():
        assert chat_template_utils.datetime is datetime.datetime
        monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)

    return move


@pytest.mark.parametrize("template", TEMPLATES, ids=range(len(TEMPLATES)))
def test_a_template_that_prints_the_day_prints_the_same_every_day(template, tomorrow):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template + USER
    today = prompt_frame(tokenizer), ask(tokenizer, "When?", "Now")
    assert today[0] == (encode(tokenizer, TEMPLATES[template]), encode(tokenizer, "<|eot_id|>"))
    tomorrow()
    assert (prompt_frame(tokenizer), ask(tokenizer, "When?", "Now")) == today
