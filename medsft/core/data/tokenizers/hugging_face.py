"""Text to ids, for a Hugging Face ``tokenizer.json``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from medsft.core.data.tokenizers.base import asking_library, frame_of
from medsft.core.data.tokenizers.fast import PROBED_PIECES, EncodeAll, FastEncoder, TokenIds, as_ids, open_fast_backend
from medsft.core.data.tokenizers.special_tokens import count_in_text, pattern_of, pieces
from medsft.core.data.tokenizers.template import Segment
from medsft.core.data.tokenizers.tokenizer_config import named_tokens, read_tokenizer_config
from medsft.core.models.checked_json import refuse_pointer
from medsft.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer

_TOLERATED_GAP = 4096
"""Ids without a token; models have some, for tables of a round size."""


class HuggingFaceTokenizer:
    """A ``tokenizer.json``, with the tokens of a template that it lacks added behind its own.

    A segment without special strings of people's making is encoded as transformers would encode its text. The others
    are cut, so that only the template's control tokens are ids and the rest goes through the model as plain text.
    """

    kind = "tokenizer.json"

    def __init__(self, file: Path, template_tokens: Sequence[str]) -> None:
        self.source = file
        content = file.read_bytes()
        refuse_pointer(file, content, DataError)
        self._native, self._plain = _loaded(content, file), _loaded(content, file)
        in_file = self._native.get_vocab(with_added_tokens=True)
        _check_ids(in_file, file)
        _check_added(content, in_file, file)
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
        config = read_tokenizer_config(file.parent)
        named = named_tokens(config)
        self._adds_bos = config.get("add_bos_token")
        self.bos_id, self.eos_id, self.pad_id = (self._known(named.get(f"{name}_token")) for name in ("bos", "eos", "pad"))
        self.unk_id = self._known(named.get("unk_token") or getattr(self._native.model, "unk_token", None))
        self.fingerprint = _fingerprint(content, template_tokens)

    def token(self, id_: int | None) -> str | None:
        """See `Tokenizer.token`."""
        return None if id_ is None else self._native.id_to_token(id_)

    @cached_property
    def frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """See `Tokenizer.frame`: as ``add_bos_token`` says, else what the post-processor does."""
        adds_bos = self._adds_bos
        if not isinstance(adds_bos, bool):
            around = self._native.encode("", add_special_tokens=True).ids
            adds_bos = self.bos_id is not None and self.bos_id in around[:1]
        return frame_of(self.source, self.bos_id, self.eos_id, adds_bos=adds_bos)

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
        return FastEncoder(self._encode_native, lambda: open_fast_backend(self._native.to_str()), vocabulary=vocabulary)

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


def _check_added(content: bytes, vocabulary: Mapping[str, int], file: Path) -> None:
    """Refuse an added token with an id beyond all others: the library would give it the next free one without a word."""
    text = content.decode(errors="replace")
    start = text.find("[", text.find('"added_tokens"'))
    try:
        added = json.JSONDecoder().raw_decode(text, start)[0] if '"added_tokens"' in text else []
        ids = {str(token["content"]): int(token["id"]) for token in added}
    except (ValueError, TypeError, KeyError):
        return  # the name stands elsewhere, in the vocabulary; or the library has read the file in another way
    highest = max(vocabulary.values(), default=-1)
    for token, number in ids.items():
        if number > highest:
            raise DataError(
                f"{file} gives an added token the id {number:,}, but ids end at {highest:,} there: `{token[:40]}`",
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
