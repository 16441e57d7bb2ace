from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsft.core.data import words
from medsft.core.data.words import WordEncoder, rule_of

TOKENS = ("<s>", "<|end|>", "end")
CORPUS = [
    "the dose  is 5 mg of aspirin, isn't it? ",
    "  - 12345 mg/kg (n=12)\n\n\tend of the\n list; don't",
    "naïve Grüße, Ωμέγα 患者",
]
SPLIT = {"Llama 3": 0, "Qwen 2": 1}
NAMES = ("GPT-2", "digits", "Llama 3", "Qwen 2", "Llama 2", "Llama 2, new")


@cache
def spec_of(name: str) -> dict[str, Any]:
    """The content of a small tokenizer.json of the kind `name`, with control tokens and one that is a word."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers

    marked = name.startswith("Llama 2")
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
    spec: dict[str, Any] = json.loads(tokenizer.to_str())
    spec["added_tokens"] = []
    model = spec["model"]
    space = "▁" if marked else "Ġ"
    for run in (space, 2 * space):  # runs of spaces, as real models have
        if 2 * run not in model["vocab"]:
            model["vocab"][2 * run] = len(model["vocab"])
            model["merges"].append([run, run])
    if name in SPLIT:
        steps = [words._KNOWN_SPLITS[SPLIT[name]], spec["pre_tokenizer"] | {"use_regex": False}]
        spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    elif name == "digits":
        steps = [{"type": "Digits", "individual_digits": True}, spec["pre_tokenizer"]]
        spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    elif name == "Llama 2":
        spec["pre_tokenizer"] = None
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        spec["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]}
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in TOKENS])
    done: dict[str, Any] = json.loads(tokenizer.to_str())
    return done


@cache
def encoders(name: str) -> tuple[Callable[[list[str]], list[list[int]]], WordEncoder]:
    from tokenizers import Tokenizer

    spec = spec_of(name)
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    rule = rule_of(spec)
    assert rule is not None

    def plain(texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]

    return plain, WordEncoder(plain, rule)


PARTS = (
    *(" ", " ", " ", "  ", "\t", "\n", " \n", "\n ", "\r\n", "\u00a0", "\u2003", "\x1c", "\u0085", "▁", "▁▁"),
    *("the", "dose", "aspirin,", "isn't", "'s", "'S", "(n=12)", "5", "12345", "mg/kg", "-", "...", "é"),
    *("e\u0301", "患者", "🙂", "\u200b"),
    *TOKENS,
    *("<|", "|>", "ends", "<0x20>", "a", "B", "x" * 40, "\x00"),
)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=400, deadline=None)
@given(texts=st.lists(st.lists(st.sampled_from(PARTS) | st.text(max_size=3), max_size=25).map("".join), max_size=6))
def test_words_have_the_ids_that_the_tokenizer_gives_the_text(name: str, texts: list[str]) -> None:
    plain, by_word = encoders(name)
    assert by_word(texts) == plain(texts)


@pytest.mark.parametrize("name", NAMES)
def test_a_word_is_encoded_once_and_what_is_remembered_is_bounded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, _ = encoders(name)
    asked: list[str] = []
    rule = rule_of(spec_of(name))
    assert rule is not None

    def counting(texts: list[str]) -> list[list[int]]:
        asked.extend(texts)
        return plain(texts)

    by_word = WordEncoder(counting, rule)
    texts = ["the dose of aspirin is the dose of it", "the dose of it"]
    assert by_word(texts) == plain(texts)
    assert sorted(" ".join(asked).split()) == ["aspirin", "dose", "is", "it", "of", "the", "the"]
    asked.clear()
    assert by_word(texts) == plain(texts)
    assert asked == []
    monkeypatch.setattr(words, "_KEPT_CHARACTERS", 10)
    assert by_word(texts) == plain(texts)
    assert asked != []


def _changed(name: str, change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    spec = copy.deepcopy(spec_of(name))
    change(spec)
    return spec


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("GPT-2", lambda spec: spec.update(normalizer={"type": "NFC"})),
        ("GPT-2", lambda spec: spec["pre_tokenizer"].update(add_prefix_space=True)),
        ("GPT-2", lambda spec: spec["model"].update(dropout=0.1)),
        ("GPT-2", lambda spec: spec["model"].update(type="WordPiece")),
        ("GPT-2", lambda spec: spec["added_tokens"][0].update(lstrip=True)),
        ("GPT-2", lambda spec: spec["added_tokens"][0].update(content="two words")),
        ("GPT-2", lambda spec: spec.update(pre_tokenizer=None)),
        ("Llama 3", lambda spec: spec["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=r"\w+ \w+")),
        ("Llama 3", lambda spec: spec["pre_tokenizer"]["pretokenizers"].reverse()),
        ("Llama 2", lambda spec: spec["model"]["vocab"].update({"of▁the": 1})),
        ("Llama 2", lambda spec: spec["normalizer"]["normalizers"].pop(0)),
        ("Llama 2, new", lambda spec: spec["pre_tokenizer"].update(prepend_scheme="first")),
        ("Llama 2, new", lambda spec: spec["model"]["vocab"].pop("▁")),
    ],
)
def test_a_tokenizer_that_may_look_across_spaces_is_used_as_it_is(name: str, change: Callable[[Any], object]) -> None:
    assert rule_of(spec_of(name)) is not None
    assert rule_of(_changed(name, change)) is None
