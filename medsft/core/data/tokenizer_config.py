"""The files beside a Hugging Face tokenizer: ``tokenizer_config.json``, ``special_tokens_map.json``, the chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from medsft.errors import DataError

_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """What the files say together; the newer ``tokenizer_config.json`` wins. Raises DataError when one is no JSON."""
    config: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / name
        if path.is_file():
            try:
                config |= json.loads(path.read_text("utf-8"))
            except ValueError:
                raise DataError(f"{path} is not valid JSON", hint="copy the tokenizer again") from None
    return config


def named_tokens(config: dict[str, Any]) -> dict[str, str]:
    """``bos_token`` and so on, those that there are."""
    contents = {name: config.get(name) for name in _NAMES}
    tokens = {name: value.get("content") if isinstance(value, dict) else value for name, value in contents.items()}
    return {name: token for name, token in tokens.items() if isinstance(token, str)}


def chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    """The jinja text: of the file ``chat_template.jinja``, else of the configuration; of several, the default one."""
    alone = folder / "chat_template.jinja"
    if alone.is_file():
        return alone.read_text("utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        template = next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    return template if isinstance(template, str) else None
