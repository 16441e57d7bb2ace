"""Fast tokenizer back ends, used only after they reproduce the ids of `tokenizers` and `sentencepiece`.

    fastokens   byte-level vocabularies: Llama 3's, Qwen's
    gigatoken   vocabularies of characters with byte fallback: SentencePiece's, and those converted from it

Both read a tokenizer.json. `tokenizers` and `sentencepiece` are the reference. A back end is used for large inputs only, after
it gave the reference's ids for texts that are hard on tokenizers and for pieces of the vocabulary itself. From then on one text
in `_COMPARED` is encoded by both, and a difference is an error, so that no set with other ids is written.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import orjson

from medsft.errors import DataError

TokenIds: TypeAlias = npt.NDArray[np.int32]
"""Of one text, [tokens]"""
EncodeAll = Callable[[Sequence[str]], list[TokenIds]]
"""The ids of each text."""

REFERENCE_ONLY = "MEDSFT_REFERENCE_TOKENIZER"
"""Environment variable: when it is set, only `tokenizers` and `sentencepiece` are used."""
PROBES = (
    "", " ", "\n", "question\nWhat is 3.5 mg/kg b.i.d.?", " two  spaces and a tab\t.", "   a\n   b\n\n\n  c   ",
    "Grüße, naïve café, Ωμέγα, 患者, 🙂\n\n- x", "URINE: pH 6,5; Na+ 140 mmol/l (n=12)\r\n", "aaaaaaaaaaaaaaaa", "x" * 400,
    "e\u0301 \u00a0 \u200b", "it's DON'T we'Ll 1234567 ١٢٣ Ⅻ ²", "\ufeffﬁne １２\u3000x\u2028y\u200d", "▁a ▁▁b\u0001\u007f",
    "p<0.05 </s> <s> <unk> <0x0A> <|x|> <b>&nbsp;", "İstanbul ſtraße ΑΣ ΌΣΟΣ e\u0301\u0323 한국어 ภาษาไทย हिन्दी",
    "CamelCase snake_case --- ==== ...... https://a.b/c?d=e#f",
)  # fmt: skip
"""Texts that are hard on tokenizers"""
PROBED_PIECES = 2000
"""Of a vocabulary, one after the other in one more text"""
_WORTH_OPENING = 2**19
"""Characters: below, the reference has encoded the input before a back end is open."""
_COMPARED = 200
"""One in so many texts is encoded by both."""
_REMEMBERED = 2**25
"""Characters, after which gigatoken is opened again: it keeps each word that it has met, and never forgets one."""


@dataclass(frozen=True, slots=True)
class FastBackend:
    """One of the fast libraries, opened."""

    name: str
    """For the message when its ids differ"""
    encode: EncodeAll


def as_ids(ids: Iterable[int]) -> TokenIds:
    """A list of ids as an array; by way of `array`, in half of numpy's own time."""
    return np.frombuffer(array("i", ids), np.int32)


class FastEncoder:
    """Gives the ids of `reference`; a back end gives them once there is much to encode.

    `open_backend` opens it. `vocabulary` is a text made of pieces of the vocabulary; the back end must give the reference's ids
    for it, too.
    """

    def __init__(self, reference: EncodeAll, open_backend: Callable[[], FastBackend], *, vocabulary: str) -> None:
        self._reference = reference
        self._open_backend = open_backend
        self._probes = [*PROBES, vocabulary]
        self._characters = 0
        self._texts = 0
        self._backend: FastBackend | None = None
        self._decided = REFERENCE_ONLY in os.environ

    def __call__(self, texts: Sequence[str]) -> list[TokenIds]:
        """Return the ids of each text. Raises DataError when the back end gives other ids for a text that is compared."""
        if not self._decided:
            self._characters += sum(map(len, texts))
            if self._characters >= _WORTH_OPENING:
                self._decided, self._backend = True, self._proven()
        if self._backend is None:
            return self._reference(texts)
        try:
            ids = self._backend.encode(texts)
        except ValueError:  # fastokens refuses a byte that its vocabulary cannot spell; tokenizers leaves it out
            return self._reference(texts)
        except (Exception, KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # a panic in Rust is no Exception; what the library keeps may be broken
            self._backend = None
            return self._reference(texts)
        self._compare(self._backend, texts, ids)
        return ids

    def _proven(self) -> FastBackend | None:
        try:
            backend = self._open_backend()
            same = all(self._same(probe, backend.encode([probe])[0]) for probe in self._probes)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # not installed here, or a kind of tokenizer it does not know; a panic in Rust is no Exception
            return None
        return backend if same else None

    def _same(self, text: str, ids: TokenIds) -> bool:
        return np.array_equal(ids, self._reference([text])[0])

    def _compare(self, backend: FastBackend, texts: Sequence[str], ids: Sequence[TokenIds]) -> None:
        for index in range(-self._texts % _COMPARED, len(texts), _COMPARED):
            if not self._same(texts[index], ids[index]):
                raise DataError(
                    f"{backend.name} gives other ids for this tokenizer than the library it stands in for",
                    hint=f"set {REFERENCE_ONLY}=1 and try again: slower, without it",
                )
        self._texts += len(texts)


def open_fast_backend(tokenizer_json: str) -> FastBackend:
    """Open the library for a vocabulary of this kind. Raises an exception of its own where that does not know the tokenizer."""
    if orjson.loads(tokenizer_json)["model"].get("byte_fallback"):
        return FastBackend("gigatoken", _Gigatoken(tokenizer_json))
    return FastBackend("fastokens", by_fastokens(tokenizer_json))


def by_fastokens(tokenizer_json: str) -> EncodeAll:
    """Encode with fastokens. Raises ValueError for a kind of tokenizer that it does not know."""
    from fastokens import Tokenizer

    tokenizer = Tokenizer.from_json_str(tokenizer_json)

    def encode(texts: Sequence[str]) -> list[TokenIds]:
        ids, offsets = tokenizer.encode_batch_flat(list(texts), add_special_tokens=False)
        flat = np.frombuffer(ids, np.int32)
        return [flat[first:last] for first, last in pairwise(np.frombuffer(offsets, np.uint64).tolist())]

    return encode


class _Gigatoken:
    """Encodes with gigatoken. Raises RuntimeError for a kind of tokenizer that it does not know."""

    def __init__(self, tokenizer_json: str) -> None:
        self._json = tokenizer_json
        self._open()

    def _open(self) -> None:
        from gigatoken import Tokenizer

        self._encode, self._characters = Tokenizer.from_json(self._json).backend.encode, 0

    def __call__(self, texts: Sequence[str]) -> list[TokenIds]:
        """Return the ids of each text."""
        self._characters += sum(map(len, texts))
        if self._characters > _REMEMBERED:
            self._open()
        return [self._encode(text).view(np.int32) for text in texts]
