"""The files beside a Hugging Face tokenizer: ``tokenizer_config.json``, ``special_tokens_map.json``, the chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from medsft.core.models.checked_json import not_a_file, refuse_pointer
from medsft.errors import DataError

_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")
_MAX_BYTES = 64 * 2**20
"""Of a file beside a tokenizer; the largest of public models, which list all their added tokens, have some 2 MiB."""
_COPY = "copy the tokenizer again"


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """What the files say together; the newer ``tokenizer_config.json`` wins. Raises DataError when one is no JSON object."""
    config: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / name
        if path.exists():
            try:
                content = json.loads(read_text(path))
            except (ValueError, RecursionError):
                raise DataError(f"{path} is not valid JSON", hint=_COPY) from None
            if not isinstance(content, dict):
                raise DataError(f"{path} holds no JSON object", hint=_COPY)
            config |= content
    return config


def read_text(path: Path) -> str:
    """The text of a small file. Raises DataError when it cannot be read, is no file, is too large, or is no UTF-8."""
    try:
        state = path.stat()
        if not_a_file(state):
            raise DataError(f"{path} is {not_a_file(state)}", hint=_COPY)
        if state.st_size > _MAX_BYTES:
            raise DataError(f"{path} has {state.st_size:,} bytes, too many for such a file", hint=_COPY)
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}", hint=_COPY) from None
    refuse_pointer(path, content, DataError)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8", hint=_COPY) from None


def named_tokens(config: dict[str, Any]) -> dict[str, str]:
    """``bos_token`` and so on, those that there are."""
    contents = {name: config.get(name) for name in _NAMES}
    tokens = {name: value.get("content") if isinstance(value, dict) else value for name, value in contents.items()}
    return {name: token for name, token in tokens.items() if isinstance(token, str)}


def chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    """The jinja text: of the file ``chat_template.jinja``, else of the configuration; of several, the default one."""
    alone = folder / "chat_template.jinja"
    if alone.exists():
        return read_text(alone)
    template = config.get("chat_template")
    if isinstance(template, list):
        entries = [entry for entry in template if isinstance(entry, dict)]
        template = next((entry.get("template") for entry in entries if entry.get("name") == "default"), None)
    return template if isinstance(template, str) else None
