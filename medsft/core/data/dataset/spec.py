"""What a tokenized set is made of: one value that is asked for, handed to worker processes, and kept in the set's manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any, Literal

from medsft.core.data.sources.row_format import RowFormat, RowFormats, formats_from_json, formats_to_json
from medsft.core.data.tokenizers.base import OpenedTokenizer
from medsft.core.data.tokenizers.open import MEDITRON_EXTRA_IDS, open_tokenizer
from medsft.core.data.tokenizers.special_tokens import SpecialInText

Turns = Literal["all", "last", "split"]
"""`split` makes a document for each answer, from the beginning of its conversation to that answer."""
DATA_LAYER_VERSION = 1
"""Raised whenever the same rows and the same tokenizer would give other ids or roles than before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """One file of rows as it was when it was read."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizeSpec:
    """Everything that decides the content of a set.

    The fields down to `template_date` are what a person asks for. `resolved` adds what was found there: the content of the
    files, of the tokenizer and of the template, by which a set that was made of something else is recognized.
    """

    data: tuple[Path, ...] = ()
    """Files of rows; empty: use the set that is there"""
    tokenizer: Path
    template: str = "meditron"
    rows: RowFormats = RowFormat()
    """How the rows of `data` are read: one format for all files, or one for each"""
    bad_rows: Literal["error", "skip"] = "error"
    special_in_text: SpecialInText = "escape"
    turns: Turns = "all"
    """Which answers are trained on. `all` and `last` give the same set, unless a chat template rewrites earlier answers"""
    extra_ids: tuple[str, ...] = MEDITRON_EXTRA_IDS
    """Added to a tokenizer.model; other tokenizers do not get them"""
    prefer_model_file: bool = False
    """Take a folder's tokenizer.model although it has a tokenizer.json"""
    template_date: str = ""
    """Day for a chat template that writes one, YYYY-MM-DD; empty: today. Resolved: the day written; empty when there is none"""
    inputs: tuple[InputFile, ...] = ()
    """The data files with their hashes"""
    tokenizer_fingerprint: str = ""
    template_sha256: str = ""
    """Of the template's jinja text"""
    data_layer: int = DATA_LAYER_VERSION

    @property
    def allows_control_tokens(self) -> bool:
        """Whether special strings that people wrote in a row become control tokens."""
        return self.special_in_text == "control"

    def open_tokenizer(self) -> OpenedTokenizer:
        """Return the tokenizer with its template. Raises DataError."""
        return open_tokenizer(
            self.tokenizer,
            template=self.template,
            extra_ids=self.extra_ids,
            prefer_model_file=self.prefer_model_file,
            today=date.fromisoformat(self.template_date) if self.template_date else None,
        )

    def resolved(self, opened: OpenedTokenizer, inputs: tuple[InputFile, ...]) -> TokenizeSpec:
        """Return the spec with what `open_tokenizer` and `hash_inputs` found.

        The day is then fixed, so that workers that start after midnight write the same one.
        """
        return replace(
            self,
            template=opened.template.name,
            template_date=opened.template.date,
            inputs=inputs,
            tokenizer_fingerprint=opened.tokenizer.fingerprint,
            template_sha256=sha256_of_template(opened),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the recipe of a manifest, under the keys of medsft 0.1.0 and some that it did not know."""
        return {
            "inputs": [asdict(file) for file in self.inputs],
            "tokenizer": self.tokenizer_fingerprint,
            "tokenizer_path": str(self.tokenizer),
            "template": self.template,
            "template_sha256": self.template_sha256,
            **formats_to_json(self.rows),
            "bad_rows": self.bad_rows,
            "special_in_text": self.special_in_text,
            **({} if self.turns == "all" else {"turns": self.turns}),
            "extra_ids": list(self.extra_ids),
            "prefer_model_file": self.prefer_model_file,
            "template_date": self.template_date,
            "data_layer": self.data_layer,
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> TokenizeSpec:
        """Return the spec that `to_json` wrote, here or in medsft 0.1.0.

        Raises KeyError, TypeError or ValueError when it is no recipe.
        """
        inputs = tuple(InputFile(**file) for file in raw["inputs"])
        return cls(
            data=tuple(Path(file.path) for file in inputs),
            tokenizer=Path(raw["tokenizer_path"]),
            template=raw["template"],
            rows=formats_from_json(raw, len(inputs)),
            bad_rows=raw["bad_rows"],
            special_in_text=raw["special_in_text"],
            turns=raw.get("turns", "all"),
            extra_ids=tuple(raw.get("extra_ids", MEDITRON_EXTRA_IDS)),
            prefer_model_file=raw.get("prefer_model_file", False),
            template_date=raw.get("template_date", ""),
            inputs=inputs,
            tokenizer_fingerprint=raw["tokenizer"],
            template_sha256=raw["template_sha256"],
            data_layer=raw["data_layer"],
        )


def sha256_of_template(opened: OpenedTokenizer) -> str:
    """Return the hash by which templates are told apart."""
    return hashlib.sha256(opened.template.jinja.encode()).hexdigest()
