"""``manifest.json`` of a tokenized set: what it was made of, so that a stale set is never used without a word."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from medsft.core.data.dataset.findings import Findings, given_twice, unknown_sentence
from medsft.core.data.dataset.spec import InputFile, TokenizeSpec
from medsft.core.data.sources.row_format import RowFormat, format_of
from medsft.core.files import write_atomically
from medsft.core.units import counted
from medsft.errors import DataError

MANIFEST_NAME = "manifest.json"
_FORMAT = 1
_BLOCK_BYTES = 8 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A set and its recipe. `recipe` is None for a set of another program that was trusted."""

    recipe: TokenizeSpec | None
    documents: int
    input_documents: tuple[int, ...] | None = None
    """Of each input file, in the order of the recipe; None for a set that was made before they were counted"""
    tokens: int
    tokens_by_role: tuple[int, ...]
    """Of system, question, answer, and of text where there is any"""
    vocab_size: int
    """Of the tokenizer, not padded"""
    stop_id: int | None = None
    """Id of the token that ends an answer; None when the template has none, or in a set that is older than this"""
    answer_tail: int = 0
    """Of a set without `stop_id`: tokens of each answer that follow its stop token"""
    special_in_text: int = 0
    """Special strings that people wrote"""
    rewritten: int = 0
    """Earlier answers that the template writes in another way because messages follow: they have the role of questions"""
    unknown: int = 0
    """Tokens that stand for text which the vocabulary cannot spell; 0 in a set that was made before they were counted, too"""
    bad_rows: Mapping[str, int] = field(default_factory=dict)
    """Rows left out, by reason"""
    notes: tuple[str, ...] = ()
    """What a person should know about the documents of this template"""
    findings: Findings | None = None
    """Of the rows; None for a set that was made before they were counted, or by another program"""
    text_bytes: int
    text_sha256: str
    role_bytes: int
    role_sha256: str
    format: int = _FORMAT

    @property
    def fingerprint(self) -> str:
        """Equal for sets with the same tokens and roles."""
        return hashlib.sha256(f"{self.text_sha256} {self.role_sha256} {self.documents}".encode()).hexdigest()

    def remarks(self, flag: str) -> list[str]:
        """Return what is to be known of the rows given with `flag`; nothing for a set made before rows were counted."""
        lines = [] if self.findings is None else self.findings.sentences(flag)
        if self.recipe is not None:
            inputs = self.recipe.inputs
            lines += given_twice([file.path for file in inputs], [file.sha256 for file in inputs], flag)
        if self.rewritten:
            lines.append(
                f"{flag}: the chat template writes {counted(self.rewritten, 'earlier answer')} in another way when messages "
                "follow: context, with the role of questions."
            )
        return lines + unknown_sentence(self.unknown, self.tokens, flag)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write and sync the manifest: aside first, so that there is never half of one."""
    record = asdict(replace(manifest, recipe=None)) | {"recipe": manifest.recipe and manifest.recipe.to_json()}
    for name in ("rewritten", "unknown"):  # medsft 0.1.0 does not know them
        if not record[name]:
            del record[name]
    write_atomically(folder / MANIFEST_NAME, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a set, None when there is none. Raises DataError when it cannot be understood."""
    path = folder / MANIFEST_NAME
    try:
        raw: dict[str, Any] = json.loads(path.read_text("utf-8"))
        if raw["format"] != _FORMAT:
            raise DataError(f"{path} was written by another version of medsft", hint="make the set again with --retokenize")
        recipe, findings = raw.pop("recipe"), raw.pop("findings", None)
        raw["tokens_by_role"] = tuple(raw["tokens_by_role"])
        counted = raw.get("input_documents")
        raw["input_documents"] = None if counted is None else tuple(counted)
        raw["notes"] = tuple(raw.get("notes", ()))
        return Manifest(recipe=recipe and TokenizeSpec.from_json(recipe), findings=findings and Findings(**findings), **raw)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path} is damaged", hint="make the set again with --retokenize") from None


def hash_inputs(files: Sequence[Path], on_bytes: Callable[[int], None] = lambda _: None) -> tuple[InputFile, ...]:
    """Size and SHA-256 of each file; `on_bytes` is told the bytes read so far, of all. Raises DataError."""
    hashed, total = [], 0
    for path in files:
        digest, size = hashlib.sha256(), 0
        try:
            with path.open("rb") as stream:
                while block := stream.read(_BLOCK_BYTES):
                    digest.update(block)
                    size += len(block)
                    on_bytes(total + size)
        except OSError as error:
            reason = error.strerror or str(error)
            raise DataError(f"{path}: cannot be read: {reason}", hint="check the paths of --data and --val") from None
        total += size
        hashed.append(InputFile(path=str(path), bytes=size, sha256=digest.hexdigest()))
    return tuple(hashed)


def differences(made: Manifest, wanted: TokenizeSpec) -> list[str]:
    """What changed since a set was made, one line each; empty when the set is the one that is wanted.

    A policy counts only if it decided something: without a bad row, `skip` and `error` give the same set.
    """
    old = made.recipe
    if old is None:
        return ["the set was made by another program, so it cannot be compared with the data"]
    lines = _input_differences(old.inputs, wanted.inputs) + tokenizer_differences(made, wanted.tokenizer_fingerprint)
    lines += template_differences(made, wanted.template, wanted.template_sha256) or _date_difference(old, wanted)
    lines += row_differences(old, wanted)
    if made.bad_rows and wanted.bad_rows == "error":
        lines.append(f"{sum(made.bad_rows.values())} bad rows were skipped, now they are an error")
    if made.special_in_text and old.special_in_text != wanted.special_in_text:
        lines.append(f"--special_in_text was {old.special_in_text}, now {wanted.special_in_text}")
    lines += turns_differences(made, wanted.turns)
    if old.data_layer != wanted.data_layer:
        lines.append(f"it was made by version {old.data_layer} of the tokenizing code, this is {wanted.data_layer}")
    return lines


def row_differences(old: TokenizeSpec, wanted: TokenizeSpec) -> list[str]:
    """One line for each thing that was decided otherwise of the rows; where files have formats of their own, for each file.

    Files are told apart by content, and only those of both are compared.
    """
    if isinstance(old.rows, RowFormat) and isinstance(wanted.rows, RowFormat):
        return old.rows.differences(wanted.rows)
    was = {file.sha256: format_of(old.rows, number) for number, file in enumerate(old.inputs)}
    return [
        f"{file.path}: {line}"
        for number, file in enumerate(wanted.inputs)
        if file.sha256 in was
        for line in was[file.sha256].differences(format_of(wanted.rows, number))
    ]


def turns_differences(made: Manifest, turns: str) -> list[str]:
    """One line if a set is not one for `--turns`.

    `all` and `last` differ only where a chat template rewrites earlier answers, which `all` refuses.
    """
    was = "all" if made.recipe is None else made.recipe.turns
    if was == turns or ("split" not in (was, turns) and not made.rewritten):
        return []
    return [f"--turns was {was}, now {turns}"]


def tokenizer_differences(made: Manifest, fingerprint: str) -> list[str]:
    """One line if the set was made with another tokenizer."""
    old = made.recipe
    if old is None or old.tokenizer_fingerprint == fingerprint:
        return []
    return [f"the tokenizer is another one (it was made with {old.tokenizer})"]


def template_differences(made: Manifest, template: str, template_sha256: str) -> list[str]:
    """One line if the set was made with another template."""
    old = made.recipe
    if old is None or old.template_sha256 == template_sha256:
        return []
    if old.template == template:
        return [f"the chat template of --template {template} has changed"]
    return [f"--template was {old.template}, now {template}"]


def _date_difference(old: TokenizeSpec, wanted: TokenizeSpec) -> list[str]:
    if old.template_date == wanted.template_date:
        return []
    kept = f"; --template_date {old.template_date} keeps that day" if old.template_date else ""
    was, now = old.template_date or "not recorded", wanted.template_date or "none"
    return [f"the chat template writes the date into every document: it was {was}, now {now}{kept}"]


def _input_differences(old: Sequence[InputFile], new: Sequence[InputFile]) -> list[str]:
    """Files are told apart by content: one that was moved or renamed is the same file."""
    was, now = [file.sha256 for file in old], [file.sha256 for file in new]
    if was == now:
        return []
    if sorted(was) == sorted(now):
        return ["the --data files are given in another order"]
    old_paths, new_paths = {file.path for file in old}, {file.path for file in new}
    lines = []
    for file in new:
        if file.sha256 not in was:
            change = "its content has changed" if file.path in old_paths else "new among the files"
            lines.append(f"{file.path}: {change}")
    gone = [file.path for file in old if file.sha256 not in now and file.path not in new_paths]
    lines += [f"{path}: no longer among the files" for path in gone]
    return lines or ["a file is given another number of times"]
