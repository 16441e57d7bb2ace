"""What a tokenizer gives, whichever file it comes from.

No tokenizer puts a beginning-of-text token before a conversation: the original does not, and the template `model` writes the
one that its chat template asks for. A document of plain text has the frame of its tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from medsft.core.data.tokenizers.fast import TokenIds
from medsft.core.data.tokenizers.template import Segment, Template
from medsft.errors import DataError


class TokenizerError(DataError):
    """A tokenizer library that gave no ids for a text. Names the tokenizer's file, never the text."""


def frame_of(file: Path, bos: int | None, eos: int | None, *, adds_bos: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return a `Tokenizer.frame`. Raises DataError without an end of text: a model would not learn where texts end."""
    if eos is None:
        raise DataError(
            f"{file}: the tokenizer names no end-of-text token, which ends each document of plain text",
            hint='name one in tokenizer_config.json ("eos_token")',
        )
    return (bos,) if adds_bos and bos is not None else (), (eos,)


@contextmanager
def asking_library(file: Path) -> Iterator[None]:
    """Raise `TokenizerError` for whatever a tokenizer library fails with, be it bare Exception or a panic in Rust."""
    try:
        yield
    except (DataError, MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic is no Exception; its words may be those of the text
        raise TokenizerError(
            f"the tokenizer library fails with {file} ({type(error).__name__})",
            hint="the text is one that this tokenizer cannot spell, or the file is damaged: copy it again",
        ) from error


class Tokenizer(Protocol):
    """What the data layer and the exports need of a tokenizer."""

    @property
    def kind(self) -> str:
        """``tokenizer.json`` or ``tokenizer.model``."""

    @property
    def source(self) -> Path:
        """The file it was read from."""

    @property
    def vocab_size(self) -> int:
        """Highest id + 1, the added tokens included, not padded."""

    @property
    def special_ids(self) -> Mapping[str, int]:
        """Control tokens, in the order in which they are searched for in text."""

    @property
    def added_tokens(self) -> tuple[tuple[str, int], ...]:
        """Tokens that are not in the file itself, with their ids: new rows of the embedding."""

    @property
    def whole_strings(self) -> tuple[str, ...]:
        """Strings that are one token wherever they stand in text: the control tokens, and added tokens that control nothing."""

    @property
    def bos_id(self) -> int | None:
        """Beginning of text."""

    @property
    def eos_id(self) -> int | None:
        """End of text; not the end of an answer, which is the template's stop token."""

    @property
    def pad_id(self) -> int | None:
        """Padding. Training has none; an exported tokenizer names it."""

    @property
    def unk_id(self) -> int | None:
        """What text becomes that the vocabulary cannot spell."""

    @property
    def frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids before and behind a document that is plain text: what its model was pretrained with.

        Before: the beginning of text where the tokenizer puts one before a text. Behind: the end of text. Raises DataError
        when the tokenizer names no end of text.
        """

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the file and of what was added to it: equal fingerprints give equal ids."""

    def token(self, id_: int | None) -> str | None:
        """The token of an id, as its file spells it."""

    def encode(self, segments: Sequence[Segment], *, control: bool = False) -> list[TokenIds]:
        """The ids of each segment on its own. With `control`, special strings that people wrote control the model."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text for people to read, control tokens included."""

    def count_special(self, segment: Segment) -> int:
        """How many special strings people wrote in a segment."""


@dataclass(frozen=True, slots=True)
class OpenedTokenizer:
    """A tokenizer with the tokens of its template, and the template."""

    tokenizer: Tokenizer
    template: Template

    @property
    def stop_id(self) -> int | None:
        """Id of the token that ends an answer."""
        return self.tokenizer.special_ids.get(self.template.stop_token)

    @property
    def unknown_id(self) -> int | None:
        """Id that only text which the vocabulary cannot spell becomes; None without one, as where GPT-2's also ends texts."""
        tokenizer = self.tokenizer
        of_template = (tokenizer.special_ids.get(token) for token in self.template.special_tokens)
        other_use = {tokenizer.bos_id, tokenizer.eos_id, self.stop_id, *of_template}
        return None if tokenizer.unk_id in other_use else tokenizer.unk_id
