"""Which files of a model's tokenizer go with its weights when they are written elsewhere."""

from __future__ import annotations

from pathlib import Path

from medsft.core.data.tokenizers.gguf_cache import converted_tokenizer
from medsft.core.models.inspect import BaseModel
from medsft.errors import DataError

_NAMES = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "chat_template.jinja", "vocab.json", "merges.txt"),
)


def files_of_tokenizer(base: BaseModel, warnings: list[str]) -> list[Path]:
    """Return the files of a model's tokenizer; that of a GGUF file is unpacked first. Adds to `warnings` where that fails."""
    if base.tokenizer is None:
        return []
    if base.kind == "gguf":
        try:
            return tokenizer_files_in(converted_tokenizer(base.weights).parent)
        except DataError as error:
            warnings.append(f"The destination has no tokenizer: {error.message}")
            return []
    return tokenizer_files_in(base.tokenizer.parent if base.tokenizer.is_file() else base.tokenizer)


def tokenizer_files_in(folder: Path) -> list[Path]:
    """Return the files of a tokenizer that lie in a folder."""
    return [folder / name for name in _NAMES if (folder / name).is_file()]
