"""Write the tokenizer of a finished model, so that other programs give exactly the ids and the text of training.

A ``tokenizer.json`` keeps everything it has and gains the template's tokens. A ``tokenizer.model`` is copied, and a
``tokenizer.json`` with the same ids is made from its pieces.

Who reads what: transformers takes ``tokenizer.json`` and ``chat_template.jinja``, whose tags tell it the assistant's tokens.
llama.cpp's converter takes ``tokenizer.model`` with the table of added tokens in ``tokenizer_config.json`` (older ones
``added_tokens.json``), and the chat template of ``tokenizer_config.json``: that one has no such tags, because not every jinja
that a GGUF file meets knows them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from medsft.core.data.tokenizers.base import OpenedTokenizer
from medsft.core.data.tokenizers.end_tokens import pad_id
from medsft.core.data.tokenizers.fast import PROBES
from medsft.core.data.tokenizers.hugging_face import HuggingFaceTokenizer
from medsft.core.data.tokenizers.sentencepiece import SentencePieceTokenizer
from medsft.core.data.tokenizers.sentencepiece_to_json import fast_tokenizer
from medsft.core.data.tokenizers.template import Role, Segment
from medsft.core.data.tokenizers.tokenizer_config import read_tokenizer_config
from medsft.errors import DataError

_ADDS_TOKENS = ("TemplateProcessing", "BertProcessing", "RobertaProcessing")
"""Post-processors of ``tokenizer.json`` that put tokens around a text."""


def export_tokenizer(opened: OpenedTokenizer, folder: Path, *, model_max_length: int | None = None) -> None:
    """Write ``tokenizer.json``, ``tokenizer_config.json``, ``special_tokens_map.json`` and ``chat_template.jinja``.

    The end token becomes the one that ends an answer, so that generation stops there. `model_max_length` is in tokens.
    Raises DataError for a ``tokenizer.model`` that has no ``tokenizer.json`` with the same ids.
    """
    tokenizer = opened.tokenizer
    config: dict[str, Any] = {}
    if isinstance(tokenizer, HuggingFaceTokenizer):
        content = json.loads(tokenizer.to_json())
        config = _source_config(tokenizer.source.parent)
    elif isinstance(tokenizer, SentencePieceTokenizer):
        content = json.loads(_converted(tokenizer))
        shutil.copyfile(tokenizer.source, folder / "tokenizer.model")
        _write_json(folder / "added_tokens.json", dict(tokenizer.added_tokens))
    else:
        raise TypeError(f"no export for {tokenizer.kind}")
    _end_where_documents_end(content, opened)
    content["post_processor"] = _without_tokens(content.get("post_processor"))
    names: dict[int | None, str] = {token["id"]: token["content"] for token in content["added_tokens"]}
    named = {
        "bos_token": names.get(tokenizer.bos_id),
        "eos_token": opened.template.stop_token or names.get(tokenizer.eos_id),
        "pad_token": tokenizer.token(pad_id(opened)),
    }
    special = {name: token for name, token in named.items() if token is not None}
    # This class takes tokenizer.json as it is; others rebuild parts of it from their own idea of the model.
    config |= special | {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": opened.template.jinja}
    config["added_tokens_decoder"] = {str(token["id"]): _entry(token) for token in content["added_tokens"]}
    config["additional_special_tokens"] = _additional(config.get("additional_special_tokens"), opened, special)
    # Training puts nothing around a document but what its template writes.
    config |= {"add_bos_token": False, "add_eos_token": False, "clean_up_tokenization_spaces": False}
    config.setdefault("model_input_names", ["input_ids", "attention_mask"])
    if model_max_length is not None:
        config["model_max_length"] = model_max_length
    (folder / "tokenizer.json").write_text(json.dumps(content, indent=2, ensure_ascii=False), "utf-8")
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "special_tokens_map.json", special)
    (folder / "chat_template.jinja").write_text(opened.template.marked_jinja, "utf-8")


def _source_config(folder: Path) -> dict[str, Any]:
    config = read_tokenizer_config(folder)
    # Of the one who saved it, or a pointer to code that is not exported.
    for name in ("auto_map", "is_local", "local_files_only", "name_or_path", "backend"):
        config.pop(name, None)
    return config


def _additional(own: object, opened: OpenedTokenizer, special: dict[str, str]) -> list[Any]:
    """The control tokens beside those with a role: the base's, and what a template or Megatron-LLM adds.

    llama.cpp's converter takes a token of a tokenizer.json for one that people may write unless it is listed here.
    """
    listed = own if isinstance(own, list) else []
    known = {token.get("content") if isinstance(token, dict) else token for token in listed} | set(special.values())
    added = (*(token for token, _ in opened.tokenizer.added_tokens), *opened.template.special_tokens)
    return [*listed, *(token for token in dict.fromkeys(added) if token not in known)]


def _entry(token: dict[str, Any]) -> dict[str, Any]:
    """A token of ``tokenizer.json`` as ``tokenizer_config.json`` lists it."""
    return {name: value for name, value in token.items() if name != "id"}


def _end_where_documents_end(content: dict[str, Any], opened: OpenedTokenizer) -> None:
    """What ends an answer is a control token, so that it is left out of decoded text, even where the base has it as a word."""
    for token in content["added_tokens"]:
        if token["content"] == opened.template.stop_token:
            token["special"] = True


def _without_tokens(processor: dict[str, Any] | None) -> dict[str, Any] | None:
    """The post-processor without what puts tokens before or behind a text, and with the place of every blank.

    The assistant's tokens are found by their places in the text: one whose blanks were cut off its place would lie outside.
    """
    if processor is None or processor.get("type") in _ADDS_TOKENS:
        return None
    if processor.get("type") == "Sequence":
        kept = [part for part in map(_without_tokens, processor.get("processors", [])) if part is not None]
        return kept[0] if len(kept) == 1 else processor | {"processors": kept} if kept else None
    return processor | {"trim_offsets": False} if processor.get("type") == "ByteLevel" else processor


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
