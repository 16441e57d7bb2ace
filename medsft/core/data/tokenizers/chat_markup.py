"""Chat templates around chat templates: with the end token that one forgets, and with the marks of the assistant's part.

A template may be written in any way, so nothing is put into its text. It becomes a macro, and what is around it finds the
assistant's part as `chat_template` does for training: what a conversation with an answer has more than the one before it.
"""

from __future__ import annotations

import json


def with_end_token(source: str, token: str) -> str:
    """Return the template that writes what `source` writes, and `token` after each answer."""
    return _around(source, _string(token), before="", behind="")


def with_marks(source: str, token: str = "") -> str:
    """Return the template that writes what `source` writes, and `token` after each answer, with each answer between the tags

    by which transformers finds the assistant's tokens (`return_assistant_tokens_mask`, TRL's `assistant_only_loss`). A prompt
    needs no marks, so none are looked for there.
    """
    return _around(source, _string(token), before="{% generation %}", behind="{% endgeneration %}")


def _around(source: str, token: str, *, before: str, behind: str) -> str:
    # One line, so that no blank can slip in. A new line after the macro's tag is dropped by jinja as everybody sets it up, one
    # at the end of a template by jinja itself; the empty text keeps the last blanks of the template.
    macro = "{% macro chat_(messages, add_generation_prompt) %}\n" + source.removesuffix("\n") + "{{ '' }}{% endmacro %}"
    # Without a token to add, a prompt is the template's own, in one go.
    simple = "false" if token != '""' else "add_generation_prompt"
    return (
        f"{macro}{{% set all_ = chat_(messages, add_generation_prompt) %}}{{% set at_ = namespace(n=0) %}}"
        f"{{% if not ({simple}) %}}{{% for message in messages %}}"
        "{% if message['role'] == 'assistant' and not loop.first %}"
        "{% set prompt_ = chat_(messages[:loop.index0], true) %}{% set whole_ = chat_(messages[:loop.index], false) %}"
        "{% if whole_.startswith(prompt_) and all_.startswith(whole_) and prompt_|length >= at_.n %}"
        f"{{{{ all_[at_.n:prompt_|length] }}}}{before}{{{{ all_[prompt_|length:whole_|length] + {token} }}}}{behind}"
        "{% set at_.n = whole_|length %}"
        "{% endif %}{% endif %}{% endfor %}{% endif %}{{ all_[at_.n:] }}"
    )


def _string(text: str) -> str:
    """A text as jinja reads it."""
    return json.dumps(text, ensure_ascii=False)
