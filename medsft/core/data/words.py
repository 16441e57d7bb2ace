"""Texts to ids word by word: each different word goes through the tokenizer once and is then remembered.

    "is chronic pain <b>"   ->   "is", " chronic", " pain", " <b>"

This is exact only for a tokenizer that never joins what stands on both sides of a single space between two characters that
are not spaces. `rule_of` tells of which ones that is known, and why.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, filterfalse, islice, pairwise
from typing import Any

from medsft.core.data.special import pattern_of

EncodeAll = Callable[[list[str]], list[list[int]]]
"""The ids of each text as the tokenizer itself gives them."""

_KEPT_CHARACTERS = 2**21
"""Of all remembered words, some 60 MB with their ids. When it is full, the words of now are learned anew."""
_LEARNED_TOGETHER = 64
_BYTE_SPACE, _MARK = "Ġ", "▁"
"""How byte-level BPE and SentencePiece write a space in their pieces."""


@dataclass(frozen=True, slots=True)
class WordRule:
    """How texts of a tokenizer are cut."""

    cut: re.Pattern[str]
    """The spaces at which a text is cut. Whatever follows the first is a word."""
    space: str
    """Goes before a word that is encoded on its own; nothing where the tokenizer itself puts a space before a text."""
    starts: frozenset[int]
    """Ids of the pieces that begin with a space: a word has one, at its beginning."""
    alone: re.Pattern[str]
    """Found in a word for which that does not hold."""


class WordEncoder:
    """Encodes texts as `encode` does, faster."""

    def __init__(self, encode: EncodeAll, rule: WordRule) -> None:
        self._encode = encode
        self._rule = rule
        self._firsts: dict[str, bytes] = {}
        """The beginnings of texts, up to the first cut, and their ids as the bytes of an array: lists take twice the time."""
        self._words: dict[str, bytes] = {}
        self._characters = 0

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text."""
        if self._characters > _KEPT_CHARACTERS:
            self._firsts.clear()
            self._words.clear()
            self._characters = 0
        cut = [self._rule.cut.split(text) for text in texts]
        firsts = list({words[0] for words in cut} - self._firsts.keys())
        self._remember(self._firsts, firsts, self._encode(firsts))
        words = chain.from_iterable(islice(words, 1, None) for words in cut)
        self._learn(set(filterfalse(self._words.__contains__, words)))
        first_ids, word_ids = self._firsts.__getitem__, self._words.__getitem__
        return [memoryview(first_ids(words[0]) + b"".join(map(word_ids, words[1:]))).cast("i").tolist() for words in cut]

    def _remember(self, known: dict[str, bytes], texts: Sequence[str], ids: Iterable[list[int]]) -> None:
        known.update(zip(texts, (array("i", of_text).tobytes() for of_text in ids), strict=True))
        self._characters += sum(map(len, texts))

    def _learn(self, words: Collection[str]) -> None:
        """Encode new words, many in one text: one by one takes twice the time."""
        together: list[str] = []
        alone: list[str] = []
        for word in words:
            (alone if self._rule.alone.search(word) else together).append(word)
        groups = [together[at : at + _LEARNED_TOGETHER] for at in range(0, len(together), _LEARNED_TOGETHER)]
        space = self._rule.space
        for group, ids in zip(groups, self._encode([space + " ".join(group) for group in groups]), strict=True):
            parts = self._parts(ids)
            if len(parts) == len(group):
                self._remember(self._words, group, parts)
            else:
                alone += group
        self._remember(self._words, alone, self._encode([space + word for word in alone]))

    def _parts(self, ids: list[int]) -> list[list[int]]:
        starts = self._rule.starts
        cuts = [index for index, id_ in enumerate(ids) if id_ in starts]
        return [ids[first:last] for first, last in pairwise([*cuts, len(ids)])] if cuts[:1] == [0] else []


# --- which tokenizers ----------------------------------------------------------------------------------------------

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_KNOWN_SPLITS = tuple(
    {
        "type": "Split",
        "pattern": {
            "Regex": rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        },
        "behavior": "Isolated",
        "invert": False,
    }
    for digits in (r"\p{N}{1,3}", r"\p{N}")
)
"""Of Llama 3, and of Qwen 2."""


def rule_of(spec: Mapping[str, Any]) -> WordRule | None:
    """The rule for the content of a ``tokenizer.json``, or None where none is known.

    Byte-level BPE: in a match of its patterns (GPT-2's, Llama 3's, Qwen 2's) only white space stands before a space, and they
    look back at nothing, so a space after something else begins a match. BPE on pieces like SentencePiece's: it joins two
    neighbours only to a piece that exists. Where no piece has a space after something else, what is joined on one side of such
    a space does not depend on the other side.
    """
    model, tokens = spec.get("model") or {}, spec.get("added_tokens") or []
    plain_tokens = all(_stands_alone(token) for token in tokens)
    if model.get("type") != "BPE" or model.get("dropout") or model.get("continuing_subword_prefix") or not plain_tokens:
        return None
    vocab, contents = model["vocab"], [str(token["content"]) for token in tokens]
    if spec.get("normalizer") is None and _is_byte_level(spec.get("pre_tokenizer")) and _BYTE_SPACE in vocab:
        return _byte_level_rule(vocab, contents)
    if _puts_a_space_before(spec) and _MARK in vocab and not any(map(_joins_words, vocab)):
        return _marked_rule(vocab, contents)
    return None


def _stands_alone(token: Mapping[str, Any]) -> bool:
    """An added token that takes no space beside it, holds none, and is looked for in the text as it is."""
    looks_around = any(token.get(name) for name in ("lstrip", "rstrip", "single_word", "normalized"))
    return not looks_around and not re.search(rf"[\s{_MARK}]", token["content"])


def _is_byte_level(pre_tokenizer: Mapping[str, Any] | None) -> bool:
    steps = _steps(pre_tokenizer, "pretokenizers")
    if not steps or steps[-1]["type"] != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return False
    before = steps[:-1]
    if steps[-1].get("use_regex", True):
        return all(step["type"] == "Digits" for step in before)
    return len(before) == 1 and before[0] in _KNOWN_SPLITS


def _puts_a_space_before(spec: Mapping[str, Any]) -> bool:
    """As Llama 2's, in its old form or its new one."""
    normalizers = _steps(spec.get("normalizer"), "normalizers")
    if spec.get("pre_tokenizer") is None:
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": _MARK}
        return normalizers == [{"type": "Prepend", "prepend": _MARK}, replace]
    metaspace = spec["pre_tokenizer"]
    scheme = metaspace.get("prepend_scheme")
    return not normalizers and metaspace["type"] == "Metaspace" and metaspace.get("replacement") == _MARK and scheme == "always"


def _steps(step: Mapping[str, Any] | None, inner: str) -> list[Mapping[str, Any]]:
    if step is None:
        return []
    return list(step[inner]) if step["type"] == "Sequence" else [step]


def _byte_level_rule(vocab: Mapping[str, int], tokens: Sequence[str]) -> WordRule:
    return WordRule(
        cut=re.compile(r" (?=\S)(?<=\S )"),
        space=" ",
        starts=_ids_from(vocab, _BYTE_SPACE),
        alone=pattern_of([" ", *tokens]),
    )


def _marked_rule(vocab: Mapping[str, int], tokens: Sequence[str]) -> WordRule:
    # Around a control token spaces are not what they are elsewhere: the text after it gets one of its own.
    before = "".join(f"(?<!{re.escape(token)} )" for token in tokens)
    after = f"(?!{pattern_of(tokens).pattern})"
    return WordRule(
        cut=re.compile(rf" (?=[^ {_MARK}])(?<=[^ {_MARK}] ){before}{after}"),
        space="",
        starts=_ids_from(vocab, _MARK),
        alone=pattern_of([" ", _MARK, *tokens]),
    )


def _ids_from(vocab: Mapping[str, int], space: str) -> frozenset[int]:
    return frozenset(id_ for piece, id_ in vocab.items() if piece.startswith(space))


def _joins_words(piece: str) -> bool:
    return re.search(rf"[^{_MARK}]{_MARK}", piece) is not None
