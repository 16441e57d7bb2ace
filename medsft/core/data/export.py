"""Write the tokenizer of a finished model, so that transformers gives exactly the ids and the text of training.

A ``tokenizer.json`` keeps everything it has and gains the template's tokens. A ``tokenizer.model`` is copied, and a
``tokenizer.json`` with the same ids is made from its pieces.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from medsft.core.data.converted import fast_tokenizer
from medsft.core.data.sentence_piece import SentencePieceTokenizer
from medsft.core.data.sooner import PROBES
from medsft.core.data.template import Role, Segment
from medsft.core.data.tokenizer_config import read_tokenizer_config
from medsft.core.data.tokenizers import HuggingFaceTokenizer, OpenedTokenizer
from medsft.errors import DataError


def export_tokenizer(opened: OpenedTokenizer, folder: Path, *, model_max_length: int | None = None) -> None:
    """Write ``tokenizer.json``, ``tokenizer_config.json``, ``special_tokens_map.json`` and ``chat_template.jinja``.

    The end token becomes the one that ends an answer, so that generation stops there. `model_max_length` is in tokens.
    Raises DataError for a ``tokenizer.model`` that has no ``tokenizer.json`` with the same ids.
    """
    tokenizer = opened.tokenizer
    config: dict[str, Any] = {}
    if isinstance(tokenizer, HuggingFaceTokenizer):
        content = tokenizer.to_json()
        config = _source_config(tokenizer.source.parent)
    elif isinstance(tokenizer, SentencePieceTokenizer):
        content = _converted(tokenizer)
        shutil.copyfile(tokenizer.source, folder / "tokenizer.model")
    else:
        raise TypeError(f"no export for {tokenizer.kind}")
    if "added_tokens_decoder" in config:
        config["added_tokens_decoder"] |= {str(id_): _added_token(token) for token, id_ in tokenizer.added_tokens}
    names: dict[int | None, str] = {id_: token for token, id_ in tokenizer.special_ids.items()}
    named = {
        "bos_token": names.get(tokenizer.bos_id),
        "eos_token": opened.template.stop_token or names.get(tokenizer.eos_id),
        "pad_token": names.get(tokenizer.pad_id),
    }
    special = {name: token for name, token in named.items() if token is not None}
    # This class takes tokenizer.json as it is; others rebuild parts of it from their own idea of the model.
    config |= special | {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": opened.template.jinja}
    config |= {"clean_up_tokenization_spaces": False}
    if model_max_length is not None:
        config["model_max_length"] = model_max_length
    (folder / "tokenizer.json").write_text(content, "utf-8")
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "special_tokens_map.json", special)
    (folder / "chat_template.jinja").write_text(opened.template.jinja, "utf-8")


def _source_config(folder: Path) -> dict[str, Any]:
    config = read_tokenizer_config(folder)
    # Of the one who saved it, or a pointer to code that is not exported.
    for name in ("auto_map", "is_local", "local_files_only", "name_or_path", "backend"):
        config.pop(name, None)
    return config


def _added_token(token: str) -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {"content": token} | flags


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _converted(tokenizer: SentencePieceTokenizer) -> str:
    """A ``tokenizer.json`` with the ids of a SentencePiece model, checked on texts that are hard on tokenizers."""
    fast = fast_tokenizer(tokenizer.pieces, sorted(tokenizer.special_ids, key=lambda token: tokenizer.special_ids[token]))
    for text in PROBES:
        framed = "".join(f"{token}{text}" for token in tokenizer.special_ids)
        if fast.encode(framed, add_special_tokens=False).ids != tokenizer.encode([Segment(framed, Role.ANSWER)])[0].tolist():
            raise DataError(
                f"{tokenizer.source} is of a kind for which no tokenizer.json with the same ids is known",
                hint="use the tokenizer.json of the base model, if it has one",
            )
    return fast.to_str(pretty=True)
