"""A SentencePiece ``tokenizer.model`` with the ids that Megatron-LLM's wrapper gives, piece for piece.

Ids: first the model's own pieces; then each special name in a fixed order, which keeps its id when it is a piece
already and otherwise takes the next free one. Text is cut at special strings and each part between them is encoded on
its own, so each begins with the model's dummy prefix.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medsft.core.data.tokenizers.base import asking_library, frame_of
from medsft.core.data.tokenizers.fast import PROBED_PIECES, EncodeAll, FastEncoder, TokenIds, as_ids, open_fast_backend
from medsft.core.data.tokenizers.sentencepiece_to_json import fast_tokenizer
from medsft.core.data.tokenizers.special_tokens import count_in_text, pattern_of, pieces
from medsft.core.data.tokenizers.template import Segment
from medsft.core.data.tokenizers.tokenizer_config import read_tokenizer_config
from medsft.core.models.checked_json import refuse_pointer
from medsft.errors import DataError

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

_BUILT_IN = ("<CLS>", "<SEP>", "<EOD>", "<MASK>")


class SentencePieceTokenizer:
    """See the module. `extra_ids` follow the built-in names, in their order."""

    kind = "tokenizer.model"

    def __init__(self, file: Path, extra_ids: Sequence[str]) -> None:
        self.source = file
        content = file.read_bytes()
        refuse_pointer(file, content, DataError)
        self.pieces = _loaded(content, file)
        size = self.pieces.vocab_size()
        names = [*_BUILT_IN, *_own_names(self.pieces), *extra_ids]
        own = {self.pieces.id_to_piece(index): index for index in range(size)}
        ids: dict[str, int] = {}
        for name in names:
            ids.setdefault(name, own.get(name, size + sum(id_ >= size for id_ in ids.values())))
        self.special_ids = ids
        self.added_tokens = tuple((name, id_) for name, id_ in ids.items() if id_ >= size)
        self.vocab_size = size + len(self.added_tokens)
        self.whole_strings = tuple(ids)
        self.unk_id = self.pieces.unk_id()
        pad, bos, eos = _own_names(self.pieces)
        self.bos_id, self.eos_id, self.pad_id = ids[bos], ids[eos], ids[pad]
        self.fingerprint = hashlib.sha256(content + repr(list(extra_ids)).encode()).hexdigest()
        self._names = {id_: name for name, id_ in ids.items()}
        self._pattern = pattern_of(tuple(ids))
        self._control = {name: as_ids([id_]) for name, id_ in ids.items()}

    def token(self, id_: int | None) -> str | None:
        """See `Tokenizer.token`."""
        return None if id_ is None else self._names.get(id_) or self.pieces.id_to_piece(id_)

    @cached_property
    def frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """See `Tokenizer.frame`: a beginning as Llama 1 and 2 have it, unless the configuration says otherwise."""
        adds_bos = read_tokenizer_config(self.source.parent).get("add_bos_token", self.pieces.bos_id() >= 0)
        eos = self.eos_id if self.pieces.eos_id() >= 0 else None
        return frame_of(self.source, self.bos_id, eos, adds_bos=adds_bos is True)

    @cached_property
    def _encode_all(self) -> EncodeAll:
        model = self.pieces
        ids = range(0, model.vocab_size(), -(-model.vocab_size() // PROBED_PIECES))
        vocabulary = "".join(model.id_to_piece(id_) for id_ in ids).replace("▁", " ")
        return FastEncoder(
            self._encode_native, lambda: open_fast_backend(fast_tokenizer(model).to_str()), vocabulary=vocabulary
        )

    def _encode_native(self, texts: Sequence[str]) -> list[TokenIds]:
        return [as_ids(self.pieces.encode(text, out_type=int)) for text in texts]

    def encode(self, segments: Sequence[Segment], *, control: bool = False) -> list[TokenIds]:
        """See `Tokenizer.encode`."""
        cut = [list(pieces(segment, self._pattern, control=control)) for segment in segments]
        with asking_library(self.source):
            plain = iter(self._encode_all([text for parts in cut for text, is_control in parts if not is_control]))
        return [
            np.concatenate([self._control[text] if is_control else next(plain) for text, is_control in parts] or [as_ids(())])
            for parts in cut
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`."""
        text = ""
        plain: list[int] = []
        for id_ in (int(id_) for id_ in ids):
            if id_ in self._names:
                text += self.pieces.decode(plain) + self._names[id_]
                plain = []
            else:
                plain.append(id_)
        return text + self.pieces.decode(plain)

    def count_special(self, segment: Segment) -> int:
        """See `Tokenizer.count_special`."""
        return count_in_text(segment, self._pattern)


def _loaded(content: bytes, file: Path) -> SentencePieceProcessor:
    from sentencepiece import SentencePieceProcessor

    try:
        return SentencePieceProcessor(model_proto=content)
    except (RuntimeError, OSError, ValueError):
        raise DataError(f"{file} is not a SentencePiece model", hint="copy the tokenizer again") from None


def _own_names(model: SentencePieceProcessor) -> tuple[str, str, str]:
    """Names of pad, bos and eos. One that the model lacks (its id is -1) gets the name that the original falls back to."""
    own = (model.pad_id(), "<PAD>"), (model.bos_id(), "<BOS>"), (model.eos_id(), "<EOS>")
    pad, bos, eos = (model.id_to_piece(id_) if id_ >= 0 else name for id_, name in own)
    return pad, bos, eos
