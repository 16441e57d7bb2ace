"""The Modelfile beside a finished model has Ollama write prompts as training wrote them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jinja2
import pytest

from medsft.core.data.sources.conversation import Message
from medsft.core.data.tokenizers.modelfile import MODELFILE, modelfile, write_modelfile
from medsft.core.data.tokenizers.template import builtin_template

TALK = (
    Message("system", "Be brief."),
    Message("user", 'What is "OD"?\n\n {{ .Role }} |'),
    Message("assistant", "Once daily."),
    Message("user", "And BD?"),
)


def template_in(text: str) -> str:
    """What Ollama takes for the template: all between the marks, line ends included."""
    [found] = re.findall(r'^TEMPLATE """(.*?)"""$', text, re.MULTILINE | re.DOTALL)
    return found


def rendered(go: str, messages: list[dict[str, Any]]) -> str:
    """Render the few actions of Go's text/template that a Modelfile uses, by their counterparts in jinja."""
    opened: list[str] = []

    def jinja(action: re.Match[str]) -> str:
        words = action[1].split()
        if words[0] == "range":
            opened.append("for")
            return "{% for message in messages %}"
        if words[0] == "if":
            assert words[1:3] == ["eq", ".Role"]
            opened.append("if")
            return f"{{% if message.role == {words[3]} %}}"
        if words[0] == "end":
            return f"{{% end{opened.pop()} %}}"
        return "{% else %}" if words[0] == "else" else f"{{{{ message{action[1].lower()} }}}}"

    source = re.sub(r"\{\{ (.*?) \}\}", jinja, go)
    assert not opened
    environment = jinja2.Environment(keep_trailing_newline=True, autoescape=False)  # a prompt is no page
    return environment.from_string(source).render(messages=messages)


@pytest.mark.parametrize("name", ["meditron", "chatml"])
@pytest.mark.parametrize("turns", [1, 2, 4])
def test_ollama_writes_the_prompts_of_training(name: str, turns: int) -> None:
    template = builtin_template(name)
    text = modelfile(template.jinja)
    assert text is not None
    assert modelfile(template.marked_jinja) == text
    asked = TALK[:turns] if turns != 1 else TALK[1:2]
    messages = [message._asdict() for message in asked]
    assert rendered(template_in(text), messages) == template.text(asked, add_generation_prompt=True)
    assert f"\nPARAMETER stop {template.stop_token}\n" in text
    assert "\nFROM ./model.gguf\n" in text


def test_the_template_of_a_base_model_has_none(tmp_path: Path) -> None:
    write_modelfile(tmp_path, "{% for message in messages %}{{ message.content }}{% endfor %}")
    assert list(tmp_path.iterdir()) == []
    write_modelfile(tmp_path, builtin_template("meditron").jinja)
    assert [path.name for path in tmp_path.iterdir()] == [MODELFILE]
