"""A ``Modelfile`` beside a finished model, by which Ollama prompts it as training did.

Without one, Ollama takes the most similar of the chat templates that it knows, or gives the model the bare question. It reads
Go's text/template: the two templates of medsft are written in it here; the chat template of a base model is not. Format:
docs/modelfile.mdx and docs/template.mdx of https://github.com/ollama/ollama.

The model in it is a GGUF file: not every version of Ollama converts a folder, and those that do split the text of a tokenizer
that they do not know in another way, where llama.cpp's converter refuses it.
"""

from __future__ import annotations

from pathlib import Path

from medsft.core.data.tokenizers.template import END, START, Role, role_words

MODELFILE, GGUF_FILE = "Modelfile", "model.gguf"


def write_modelfile(folder: Path, chat_template: str) -> None:
    """Write the ``Modelfile`` of a model in `folder` with this chat template (jinja), where it is one of medsft's own."""
    text = modelfile(chat_template)
    if text is not None:
        (folder / MODELFILE).write_text(text, encoding="utf-8")


def modelfile(chat_template: str) -> str | None:
    """Return the text of a ``Modelfile`` for a GGUF file beside it; None for a chat template that is not medsft's own."""
    words = role_words(chat_template)
    if words is None:
        return None
    names = {"user": words[Role.QUESTION], "assistant": words[Role.ANSWER]}
    branches = "".join(f'{{{{ if eq .Role "{role}" }}}}{word}{{{{ else }}}}' for role, word in names.items())
    role = f"{branches}{{{{ .Role }}}}{'{{ end }}' * len(names)}"
    return f'''\
# In this folder, with llama.cpp:  python llama.cpp/convert_hf_to_gguf.py . --outfile {GGUF_FILE}
# Then:                            ollama create NAME -f {MODELFILE}
FROM ./{GGUF_FILE}
TEMPLATE """{{{{ range .Messages }}}}{START}{role}
{{{{ .Content }}}}{END}
{{{{ end }}}}{START}{words[Role.ANSWER]}
"""
PARAMETER stop {END}
# The most likely token each time, as `medsft ask` answers.
PARAMETER temperature 0
'''
