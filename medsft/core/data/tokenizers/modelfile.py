"""A ``Modelfile`` beside a finished model, by which Ollama prompts it as training did.

Without one, Ollama takes the most similar of the chat templates that it knows, or gives the model the bare question. It reads
Go's text/template: the two templates of medsft are written in it here; the chat template of a base model is not.
Format: docs/modelfile.md and docs/template.md of https://github.com/ollama/ollama.
"""

from __future__ import annotations

from pathlib import Path

from medsft.core.data.tokenizers.template import END, START, Role, role_words

MODELFILE = "Modelfile"


def write_modelfile(folder: Path, chat_template: str) -> None:
    """Write the ``Modelfile`` of a model in `folder` with this chat template (jinja), where it is one of medsft's own."""
    text = modelfile(chat_template)
    if text is not None:
        (folder / MODELFILE).write_text(text, encoding="utf-8")


def modelfile(chat_template: str) -> str | None:
    """Return the text of a ``Modelfile`` for a model in the same folder; None for a chat template that is not medsft's own."""
    words = role_words(chat_template)
    if words is None:
        return None
    names = {"user": words[Role.QUESTION], "assistant": words[Role.ANSWER]}
    branches = "".join(f'{{{{ if eq .Role "{role}" }}}}{word}{{{{ else }}}}' for role, word in names.items())
    role = f"{branches}{{{{ .Role }}}}{'{{ end }}' * len(names)}"
    return f'''\
# ollama create NAME -f {MODELFILE}
FROM .
TEMPLATE """{{{{ range .Messages }}}}{START}{role}
{{{{ .Content }}}}{END}
{{{{ end }}}}{START}{words[Role.ANSWER]}
"""
PARAMETER stop {END}
# The most likely token each time, as `medsft ask` answers.
PARAMETER temperature 0
'''
