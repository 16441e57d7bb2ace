"""Two libraries that give the ids of `tokenizers` and of `sentencepiece` in a fraction of the time, and the proof that they do.

    fastokens   vocabularies of bytes: Llama 3's, Qwen's
    gigatoken   vocabularies of characters, which spell what they lack in bytes: SentencePiece's and what was made from them

Both read a tokenizer.json. The slower two define what is right. A faster one is used for large inputs only, after it gave the
same ids for texts that are hard on tokenizers and for pieces of the vocabulary itself, and then it is compared with the slower
one now and then, so that a set with other ids cannot come to be.
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
"""Characters: below, the slower library is done before the faster one is open."""
_COMPARED = 200
"""One in so many texts is encoded by both."""
_REMEMBERED = 2**25
"""Characters, after which gigatoken is opened again: it keeps each word that it has met, and never forgets one."""


@dataclass(frozen=True, slots=True)
class Faster:
    """One of the faster libraries, opened."""

    name: str
    """For the message when it errs"""
    encode: EncodeAll


def as_ids(ids: Iterable[int]) -> TokenIds:
    """A list of ids as an array; by way of `array`, in half of numpy's own time."""
    return np.frombuffer(array("i", ids), np.int32)


class SoonerEncoder:
    """Encodes texts as `reference` does; by what `open_faster` returns once there is much to encode."""

    def __init__(self, reference: EncodeAll, open_faster: Callable[[], Faster], *, vocabulary: str) -> None:
        self._reference = reference
        self._open_faster = open_faster
        self._probes = [*PROBES, vocabulary]
        self._characters = 0
        self._texts = 0
        self._faster: Faster | None = None
        self._decided = REFERENCE_ONLY in os.environ

    def __call__(self, texts: Sequence[str]) -> list[TokenIds]:
        """Return the ids of each text. Raises DataError when the faster library errs in one of those compared."""
        if not self._decided:
            self._characters += sum(map(len, texts))
            if self._characters >= _WORTH_OPENING:
                self._decided, self._faster = True, self._proven()
        if self._faster is None:
            return self._reference(texts)
        try:
            ids = self._faster.encode(texts)
        except ValueError:  # fastokens refuses a byte that its vocabulary cannot spell; tokenizers leaves it out
            return self._reference(texts)
        except (Exception, KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # a panic in Rust is no Exception; what the library keeps may be broken
            self._faster = None
            return self._reference(texts)
        self._compare(self._faster, texts, ids)
        return ids

    def _proven(self) -> Faster | None:
        try:
            faster = self._open_faster()
            same = all(self._same(probe, faster.encode([probe])[0]) for probe in self._probes)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # not installed here, or a kind of tokenizer it does not know; a panic in Rust is no Exception
            return None
        return faster if same else None

    def _same(self, text: str, ids: TokenIds) -> bool:
        return np.array_equal(ids, self._reference([text])[0])

    def _compare(self, faster: Faster, texts: Sequence[str], ids: Sequence[TokenIds]) -> None:
        for index in range(-self._texts % _COMPARED, len(texts), _COMPARED):
            if not self._same(texts[index], ids[index]):
                raise DataError(
                    f"{faster.name} gives other ids for this tokenizer than the library it stands in for",
                    hint=f"set {REFERENCE_ONLY}=1 and try again: slower, without it",
                )
        self._texts += len(texts)


def open_faster(tokenizer_json: str) -> Faster:
    """Open the library for a vocabulary of this kind. Raises an exception of its own where that does not know the tokenizer."""
    if orjson.loads(tokenizer_json)["model"].get("byte_fallback"):
        return Faster("gigatoken", _Gigatoken(tokenizer_json))
    return Faster("fastokens", by_fastokens(tokenizer_json))


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
