"""Text to ids, for a Hugging Face ``tokenizer.json`` and for a SentencePiece ``tokenizer.model``.

Both give a `Tokenizer`. Neither puts a beginning-of-text token before a document: the original does not, and the
template `model` writes the one that its chat template asks for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from medsft.core.checked import refuse_pointer
from medsft.core.data.chat_template import load_chat_template
from medsft.core.data.sooner import PROBED_PIECES, EncodeAll, SoonerEncoder, TokenIds, as_ids, open_faster
from medsft.core.data.special import count_in_text, pattern_of, pieces
from medsft.core.data.template import Segment, Template, builtin_template
from medsft.core.data.tokenizer_config import named_tokens, read_tokenizer_config
from medsft.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer

MEDITRON_EXTRA_IDS = (
    "[bib_ref]", "[/bib_ref]", "[fig_ref]", "[/fig_ref]", "[bib]", "[/bib]", "[fig]", "[/fig]",
    "[table]", "[/table]", "[formula]", "[/formula]", "<|im_start|>", "<|im_end|>",
)  # fmt: skip
"""Tokens that the original appends to a SentencePiece model, in this order, after its five built-in ones."""
_TOLERATED_GAP = 4096
"""Ids without a token; models have some, for tables of a round size."""


class TokenizerError(DataError):
    """A tokenizer library that gave no ids for a text. Names the tokenizer's file, never the text."""


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
        from medsft.core.data.gguf_cache import converted_tokenizer

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
    from medsft.core.data.sentence_piece import SentencePieceTokenizer

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
        f"{path} holds no tokenizer.json and no tokenizer.model{tokenizer_instead(path)}"
        if path.is_dir()
        else f"{path} does not exist",
        hint="give the tokenizer with --tokenizer, or its path in the checkpoint's entry of medsft.toml",
    )


def tokenizer_instead(folder: Path) -> str:
    """Say which tokenizer is there instead of one that is read, and what to do, or nothing."""
    if (folder / "tekken.json").is_file():
        return ": tekken.json is Mistral's own format, which is not read; take the tokenizer.json of the same model"
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return (
            ": vocab.json and merges.txt are an old format, which is not read; load them once with transformers' AutoTokenizer "
            "and save_pretrained writes tokenizer.json"
        )
    return ""


class HuggingFaceTokenizer:
    """A ``tokenizer.json``, with the tokens of a template that it lacks added behind its own.

    A segment without special strings of people's making is encoded as transformers would encode its text. The others
    are cut, so that only the template's control tokens are ids and the rest goes through the model as plain text.
    """

    kind = "tokenizer.json"

    def __init__(self, file: Path, template_tokens: Sequence[str]) -> None:
        self.source = file
        content = file.read_bytes()
        refuse_pointer(file, content)
        self._native, self._plain = _loaded(content, file), _loaded(content, file)
        in_file = self._native.get_vocab(with_added_tokens=True)
        _check_ids(in_file, file)
        matched = {token.content for token in self._native.get_added_tokens_decoder().values()}
        # A token that the model has as an ordinary piece only must also be matched as a whole in text.
        missing = [token for token in template_tokens if token not in matched]
        _add(self._native, missing)
        _add(self._plain, missing)
        self._plain.encode_special_tokens = True
        self.added_tokens = tuple((token, self._id(token)) for token in missing if token not in in_file)
        self.vocab_size = max(self._native.get_vocab(with_added_tokens=True).values()) + 1
        own = {token.content: id_ for id_, token in self._native.get_added_tokens_decoder().items() if token.special}
        template_ids = {token: self._id(token) for token in template_tokens}
        # Longest first: a special string may begin with another, and tokenizers takes the longest.
        self.special_ids = dict(sorted((own | template_ids).items(), key=lambda entry: -len(entry[0])))
        self.whole_strings = tuple(token.content for token in self._native.get_added_tokens_decoder().values())
        self._pattern = pattern_of(tuple(self.special_ids))
        named = named_tokens(read_tokenizer_config(file.parent))
        self.bos_id, self.eos_id, self.pad_id = (self._known(named.get(f"{name}_token")) for name in ("bos", "eos", "pad"))
        self.unk_id = self._known(named.get("unk_token") or getattr(self._native.model, "unk_token", None))
        self.fingerprint = _fingerprint(content, template_tokens)

    def token(self, id_: int | None) -> str | None:
        """See `Tokenizer.token`."""
        return None if id_ is None else self._native.id_to_token(id_)

    def _id(self, token: str) -> int:
        id_ = self._native.token_to_id(token)
        assert id_ is not None
        return id_

    def _known(self, token: str | None) -> int | None:
        return None if token is None else self._native.token_to_id(token)

    @cached_property
    def _encode_all(self) -> EncodeAll:
        ids = sorted(self._native.get_vocab(with_added_tokens=False).values())[:: -(-self.vocab_size // PROBED_PIECES)]
        vocabulary = self._native.decode(ids, skip_special_tokens=False)
        return SoonerEncoder(self._encode_native, lambda: open_faster(self._native.to_str()), vocabulary=vocabulary)

    def _encode_native(self, texts: Sequence[str]) -> list[TokenIds]:
        return [as_ids(encoding.ids) for encoding in self._native.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode(self, segments: Sequence[Segment], *, control: bool = False) -> list[TokenIds]:
        """See `Tokenizer.encode`."""
        texts = [segment.text for segment in segments]
        with asking_library(self.source):
            ids = self._encode_all(texts)
            if not control:
                for index, segment in enumerate(segments):
                    if self.count_special(segment):
                        ids[index] = as_ids(self._encode_escaped(segment))
        return ids

    def _encode_escaped(self, segment: Segment) -> list[int]:
        ids: list[int] = []
        for text, is_control in pieces(segment, self._pattern, control=False):
            ids += [self.special_ids[text]] if is_control else self._encode_plain(text)
        return ids

    def _encode_plain(self, text: str) -> list[int]:
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        if set(self.special_ids.values()).isdisjoint(ids):
            return ids
        # Some models have the whole special string as an ordinary piece; two halves never give it.
        cuts = [0, *(match.start() + 1 for match in self._pattern.finditer(text)), len(text)]
        halves = [text[first:last] for first, last in pairwise(cuts)]
        return [id_ for half in halves for id_ in self._plain.encode(half, add_special_tokens=False).ids]

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`."""
        return self._native.decode(list(ids), skip_special_tokens=False)

    def count_special(self, segment: Segment) -> int:
        """See `Tokenizer.count_special`."""
        return count_in_text(segment, self._pattern)

    def to_json(self) -> str:
        """The content of a ``tokenizer.json`` that has the added tokens."""
        return self._native.to_str(pretty=True)


def _loaded(content: bytes, file: Path) -> FastTokenizer:
    from tokenizers import Tokenizer as FastTokenizer

    try:
        tokenizer = FastTokenizer.from_buffer(content)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises bare Exception; a panic in Rust is not even that
        raise DataError(f"{file} is not a valid tokenizer: {error}", hint="copy the tokenizer again") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _check_ids(vocabulary: Mapping[str, int], file: Path) -> None:
    """A table has a row for every id up to the highest: one far away would make it as large as somebody liked."""
    token, highest = max(vocabulary.items(), key=lambda entry: entry[1], default=("", 0))
    if highest > 2 * len(vocabulary) + _TOLERATED_GAP:
        raise DataError(
            f"{file} gives a token the id {highest:,}, but has only {len(vocabulary):,} tokens: `{token[:40]}`",
            hint="copy the tokenizer again, or give that token the next free id",
        )


def _add(tokenizer: FastTokenizer, tokens: Sequence[str]) -> None:
    """Make strings control tokens; one that is no piece of the model gets the next free id."""
    from tokenizers import AddedToken

    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])


def _fingerprint(content: bytes, *policies: Sequence[str]) -> str:
    digest = hashlib.sha256(content)
    digest.update(repr([list(policy) for policy in policies]).encode())
    return digest.hexdigest()
