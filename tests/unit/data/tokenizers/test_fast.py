"""The fast back ends, held against `tokenizers` and `sentencepiece`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsft.core.data.tokenizers import fast
from medsft.core.data.tokenizers.fast import (
    REFERENCE_ONLY,
    EncodeAll,
    FastBackend,
    FastEncoder,
    TokenIds,
    as_ids,
    by_fastokens,
    open_fast_backend,
)
from medsft.core.data.tokenizers.sentencepiece import SentencePieceTokenizer
from medsft.errors import DataError

TOKENS = ("<s>", "<|end|>", "end")
CORPUS = [
    "the dose  is 5 mg of aspirin, isn't it? ",
    "  - 12345 mg/kg (n=12)\n\n\tend of the\n list; don't",
    "naïve Grüße, Ωμέγα 患者",
]
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPLITS = {
    name: rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for name, digits in {"Llama 3": r"\p{N}{1,3}", "Qwen 2": r"\p{N}"}.items()
}
KINDS = ("GPT-2", "digits", "Llama 3", "Qwen 2", "Llama 2", "Llama 2, new")
LONG = "the dose " * (fast._WORTH_OPENING // 9 + 1)
PARTS = (
    *(" ", " ", " ", "  ", "\t", "\n", " \n", "\n ", "\r\n", "\u00a0", "\u2003", "\x1c", "\u0085", "▁", "▁▁"),
    *("the", "dose", "aspirin,", "isn't", "'s", "'S", "(n=12)", "5", "12345", "mg/kg", "-", "...", "é"),
    *("e\u0301", "患者", "🙂", "\u200b"),
    *TOKENS,
    *("<|", "|>", "ends", "<0x20>", "</s>", "<unk>", "a", "B", "x" * 40, "\x00"),
)
hard_texts = st.lists(st.lists(st.sampled_from(PARTS) | st.text(max_size=3), max_size=25).map("".join), max_size=6)


def lists(ids: Sequence[TokenIds]) -> list[list[int]]:
    return [of_text.tolist() for of_text in ids]


@cache
def tokenizer_json(kind: str) -> str:
    """A small tokenizer.json of a kind, with control tokens and one that is a word."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers

    marked = kind.startswith("Llama 2")
    tokenizer = Tokenizer(models.BPE(byte_fallback=marked, fuse_unk=marked, unk_token="<unk>" if marked else None))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always") if marked else byte_level
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        initial_alphabet=[] if marked else pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<unk>", *bytes_] if marked else [],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 9, trainer)
    spec: dict[str, Any] = json.loads(tokenizer.to_str()) | {"added_tokens": []}
    if kind in SPLITS:
        split = {"type": "Split", "pattern": {"Regex": SPLITS[kind]}, "behavior": "Isolated", "invert": False}
        steps = [split, spec["pre_tokenizer"] | {"use_regex": False}]
        spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    elif kind == "digits":
        steps = [{"type": "Digits", "individual_digits": True}, spec["pre_tokenizer"]]
        spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    elif kind == "Llama 2":
        spec["pre_tokenizer"] = None
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        spec["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]}
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in TOKENS])
    return str(tokenizer.to_str())


@cache
def pair_of(kind: str) -> tuple[EncodeAll, FastEncoder]:
    """How tokenizers encodes, and the encoder for large inputs after much was encoded."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json(kind))

    def reference(texts: Sequence[str]) -> list[TokenIds]:
        return [as_ids(encoding.ids) for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    encode = FastEncoder(reference, lambda: open_fast_backend(tokenizer_json(kind)), vocabulary=" ".join(CORPUS))
    encode([LONG])
    return reference, encode


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=300)
@given(texts=hard_texts)
def test_ids_are_those_of_tokenizers(kind: str, texts: list[str]) -> None:
    reference, encode = pair_of(kind)
    assert lists(encode(texts)) == lists(reference(texts))


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_a_fast_back_end(kind: str) -> None:
    _, encode = pair_of(kind)
    assert encode._backend is not None
    assert encode._backend.name == ("gigatoken" if kind.startswith("Llama 2") else "fastokens")


@settings(max_examples=300)
@given(texts=hard_texts)
def test_ids_are_those_of_sentencepiece(sentence_piece_model: Path, texts: list[str]) -> None:
    reference, encode = sentence_piece_pair(sentence_piece_model)
    assert encode._backend is not None
    assert lists(encode(texts)) == lists(reference(texts))


@cache
def sentence_piece_pair(file: Path) -> tuple[EncodeAll, FastEncoder]:
    """How sentencepiece encodes, and the tokenizer's encoder for large inputs after much was encoded."""
    tokenizer = SentencePieceTokenizer(file, ())

    def reference(texts: Sequence[str]) -> list[TokenIds]:
        return [as_ids(tokenizer.pieces.encode(text, out_type=int)) for text in texts]

    encode = tokenizer._encode_all
    assert isinstance(encode, FastEncoder)
    encode([LONG])
    return reference, encode


@pytest.mark.parametrize(
    "kind",
    [
        {"model_type": "unigram"},
        {"normalization_rule_name": "nmt_nfkc"},
        {"remove_extra_whitespaces": True},
        {"add_dummy_prefix": False},
        {"user_defined_symbols": ["mg/kg", "dose of"]},
    ],
    ids=str,
)
def test_another_kind_of_model_keeps_its_ids(kind: dict[str, Any], tmp_path: Path) -> None:
    from sentencepiece import SentencePieceTrainer

    llamas: dict[str, Any] = {"model_type": "bpe", "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 50),
        model_prefix=str(tmp_path / "other"),
        vocab_size=360,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
        **llamas | kind,
    )
    reference, encode = sentence_piece_pair(tmp_path / "other.model")
    texts = [*CORPUS, "10 mg/kg  the dose of x", "ﬁne １２", *PARTS]
    assert lists(encode(texts)) == lists(reference(texts))


def test_gigatoken_is_opened_again_before_it_remembers_too_much(
    sentence_piece_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, encode = sentence_piece_pair(sentence_piece_model)
    assert encode._backend is not None
    library = encode._backend.encode
    assert isinstance(library, fast._Gigatoken)
    before, ids = library._encode, lists(encode(CORPUS))
    monkeypatch.setattr(fast, "_REMEMBERED", library._characters + 1)
    assert lists(encode(CORPUS)) == ids
    assert library._encode is not before
    assert library._characters == 0


# --- when a back end is used --------------------------------------------------------------------------------------


def letters(texts: Sequence[str]) -> list[TokenIds]:
    return [as_ids(map(ord, text)) for text in texts]


def encoder(faster: EncodeAll, opened: list[str] | None = None) -> FastEncoder:
    def open_it() -> FastBackend:
        if opened is not None:
            opened.append("opened")
        return FastBackend("a library", faster)

    return FastEncoder(letters, open_it, vocabulary="abc")


def wrong_for(*texts: str) -> Callable[[Sequence[str]], list[TokenIds]]:
    return lambda given: [as_ids([0]) if text in texts else letters([text])[0] for text in given]


def test_it_is_opened_once_there_is_much_to_encode() -> None:
    opened: list[str] = []
    encode = encoder(letters, opened)
    assert lists(encode(["few"])) == lists(letters(["few"]))
    assert not opened
    assert lists(encode([LONG, "more"])) == lists(letters([LONG, "more"]))
    encode([LONG])
    assert opened == ["opened"]


@pytest.mark.parametrize("hard", ["abc", fast.PROBES[3], fast.PROBES[-1]])
def test_one_that_errs_on_hard_texts_or_on_the_vocabulary_is_not_used(hard: str) -> None:
    assert lists(encoder(wrong_for(hard, LONG))([LONG])) == lists(letters([LONG]))


class Panic(BaseException):
    """As the libraries in Rust raise it"""


@pytest.mark.parametrize("error", [ImportError, ValueError, Panic])
def test_one_that_cannot_be_opened_is_not_used(error: type[BaseException]) -> None:
    def refuse() -> FastBackend:
        raise error("unknown kind")

    encode = FastEncoder(letters, refuse, vocabulary="")
    assert lists(encode([LONG])) == lists(letters([LONG]))


def test_one_that_panics_later_is_not_asked_again() -> None:
    asked: list[str] = []

    def panicking(texts: Sequence[str]) -> list[TokenIds]:
        asked.extend(texts)
        if "bad" in texts:
            raise Panic("a bug in the library")
        return letters(texts)

    encode = encoder(panicking)
    encode([LONG])
    assert lists(encode(["good", "bad"])) == lists(letters(["good", "bad"]))
    assert lists(encode(["next"])) == lists(letters(["next"]))
    assert "bad" in asked
    assert "next" not in asked


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interruption_is_no_panic(interrupt: type[BaseException]) -> None:
    def interrupted(texts: Sequence[str]) -> list[TokenIds]:
        raise interrupt

    with pytest.raises(interrupt):
        encoder(interrupted)([LONG])


def test_one_that_errs_later_stops_the_set_with_the_remedy() -> None:
    encode = encoder(wrong_for("bad"))
    encode([LONG, *["good"] * (fast._COMPARED - 1)])
    with pytest.raises(DataError, match="other ids") as raised:
        encode(["bad"])
    assert REFERENCE_ONLY in raised.value.hint
    assert "bad" not in str(raised.value)


def test_one_in_so_many_texts_is_compared_also_across_calls() -> None:
    encode = encoder(wrong_for("bad"))
    encode([LONG])
    encode(["good"] * (fast._COMPARED - 2))
    encode(["bad"])
    with pytest.raises(DataError):
        encode(["bad"])


def test_the_environment_can_keep_it_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REFERENCE_ONLY, "1")
    opened: list[str] = []
    assert lists(encoder(letters, opened)([LONG])) == lists(letters([LONG]))
    assert not opened


def test_a_text_that_the_library_refuses_is_encoded_by_the_other() -> None:
    def refusing(texts: Sequence[str]) -> list[TokenIds]:
        if "\x07" in texts:
            raise ValueError("byte 0x07 has no token")
        return [
            as_ids([1]) if text == "asked of the faster one" else ids for text, ids in zip(texts, letters(texts), strict=True)
        ]

    encode = encoder(refusing)
    encode([LONG])
    assert lists(encode(["a", "\x07"])) == lists(letters(["a", "\x07"]))
    assert lists(encode(["asked of the faster one"])) == [[1]]


def test_a_byte_that_the_vocabulary_cannot_spell_is_left_out_as_tokenizers_does() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    faster = by_fastokens(tokenizer.to_str())
    assert faster(["the dose"])[0].tolist() == tokenizer.encode("the dose").ids
    with pytest.raises(ValueError, match="0x07"):
        faster(["a\x07"])
