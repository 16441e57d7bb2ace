"""Finds the file of a tokenizer and opens it, with the tokens of a template."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path

from medsft.core.data.tokenizers.base import OpenedTokenizer, Tokenizer
from medsft.core.data.tokenizers.chat_template import load_chat_template
from medsft.core.data.tokenizers.gguf_cache import converted_tokenizer
from medsft.core.data.tokenizers.hugging_face import HuggingFaceTokenizer
from medsft.core.data.tokenizers.sentencepiece import SentencePieceTokenizer
from medsft.core.data.tokenizers.template import builtin_template
from medsft.errors import DataError, MismatchError

MEDITRON_EXTRA_IDS = (
    "[bib_ref]", "[/bib_ref]", "[fig_ref]", "[/fig_ref]", "[bib]", "[/bib]", "[fig]", "[/fig]",
    "[table]", "[/table]", "[formula]", "[/formula]", "<|im_start|>", "<|im_end|>",
)  # fmt: skip
"""Tokens that the original appends to a SentencePiece model, in this order, after its five built-in ones."""


def open_tokenizer(
    path: Path,
    *,
    template: str = "meditron",
    extra_ids: Sequence[str] = MEDITRON_EXTRA_IDS,
    prefer_model_file: bool = False,
    today: date | None = None,
) -> OpenedTokenizer:
    """Open a tokenizer folder, a ``tokenizer.json``, a ``tokenizer.model`` or a GGUF file, and add the template's tokens.

    A folder's ``tokenizer.json`` goes before its ``tokenizer.model`` unless `prefer_model_file`. `extra_ids` belong to
    a ``tokenizer.model`` only; any other tokenizer gets just the tokens of the template that it lacks. `today` is the date for
    a chat template that writes one. Raises DataError.
    """
    file = find_tokenizer_file(path, prefer_model_file=prefer_model_file)
    if file.suffix == ".gguf":
        file = converted_tokenizer(file)
    if template != "model":
        named = builtin_template(template)
        return OpenedTokenizer(_open_file(file, named.special_tokens, extra_ids), named)
    tokenizer = _open_file(file, (), extra_ids)
    own = load_chat_template(file.parent, tuple(tokenizer.special_ids), added_strings=tokenizer.whole_strings, today=today)
    if own.stop_token not in tokenizer.special_ids:
        # It ends answers, so it controls the model, whatever its file says: a row must not be able to write it.
        tokenizer = _open_file(file, (own.stop_token,), extra_ids)
    return OpenedTokenizer(tokenizer, own)


def _open_file(file: Path, template_tokens: Sequence[str], extra_ids: Sequence[str]) -> Tokenizer:
    if file.suffix == ".json":
        return HuggingFaceTokenizer(file, template_tokens)
    missing = [token for token in template_tokens if token not in extra_ids]
    return SentencePieceTokenizer(file, (*extra_ids, *missing))


def find_tokenizer_file(path: Path, *, prefer_model_file: bool = False) -> Path:
    """The file of a tokenizer given by its folder or by itself. Raises DataError when there is none."""
    if path.is_file():
        if path.suffix in (".json", ".model", ".gguf") or ".model." in path.name:
            return path
        raise DataError(f"{path} is no tokenizer", hint="give a tokenizer.json, a tokenizer.model, a GGUF file or a folder")
    names = ["tokenizer.json", "tokenizer.model"]
    for name in reversed(names) if prefer_model_file else names:
        if (path / name).is_file():
            return path / name
    ggufs = sorted(path.glob("*.gguf"))
    if len(ggufs) == 1:
        return ggufs[0]
    raise DataError(
        f"{path} holds no tokenizer.json and no tokenizer.model{_tokenizer_instead(path)}"
        if path.is_dir()
        else f"{path} does not exist",
        hint="give the tokenizer with --tokenizer, or its path in the checkpoint's entry of medsft.toml",
    )


def no_tokenizer_beside(model: Path) -> MismatchError:
    """The error for a base model, a folder or a file, that has no tokenizer with it and none in its entry of medsft.toml."""
    return MismatchError(
        f"{model}: no tokenizer beside the model{_tokenizer_instead(model)}.",
        hint='Name it in medsft.toml: { path = "...", tokenizer = "..." }.',
    )


def _tokenizer_instead(folder: Path) -> str:
    """Say which tokenizer is there instead of one that is read, and what to do, or nothing."""
    if (folder / "tekken.json").is_file():
        return ": tekken.json is Mistral's own format, which is not read; take the tokenizer.json of the same model"
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return (
            ": vocab.json and merges.txt are an old format, which is not read; load them once with transformers' AutoTokenizer "
            "and save_pretrained writes tokenizer.json"
        )
    return ""
