"""What people are shown of documents is what a run uses of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
from role_sets import write_conversations

from medsft.core.data.dataset.dataset import TokenizedDataset
from medsft.core.data.dataset.samples import Sample, conversation_samples, first_positions, samples, token_texts
from medsft.core.data.dataset.subset import Reading, as_read
from medsft.core.data.sources.conversation import Message
from medsft.core.data.tokenizers.base import OpenedTokenizer
from medsft.core.data.tokenizers.open import open_tokenizer
from medsft.core.data.tokenizers.template import Role

DOCUMENTS = 20


@pytest.fixture
def opened(tmp_path: Path) -> OpenedTokenizer:
    tiny.write_tokenizer(tmp_path)
    return open_tokenizer(tmp_path)


@pytest.fixture
def data(tmp_path: Path, opened: OpenedTokenizer) -> TokenizedDataset:
    assert opened.stop_id is not None
    vocabulary = opened.tokenizer.vocab_size
    return write_conversations(tmp_path / "x", documents=DOCUMENTS, stop_id=opened.stop_id, vocab_size=vocabulary)


@pytest.mark.parametrize("turns", ["all", "last"])
@pytest.mark.parametrize("truncate", ["error", "keep"])
@pytest.mark.parametrize("seq", [9, 23, 100])
def test_weights_are_those_of_the_run(
    data: TokenizedDataset, opened: OpenedTokenizer, turns: str, truncate: str, seq: int
) -> None:
    read = as_read(data.outlines, Reading(seq=seq, truncate=truncate, turns=turns))
    positions = first_positions(read, 0, DOCUMENTS)
    assert positions == list(range(len(read)))
    for position, sample in zip(positions, samples(data, opened.tokenizer, read, positions), strict=True):
        document = int(read.indices[position])
        span = read.span(position)
        kept = [part for part in sample.parts if not part.cut]
        weights = np.repeat([part.weight(0.25) for part in kept], [part.tokens for part in kept])
        trained = read.trained(position, data.roles(document))
        assert np.where(trained, 1.0, 0.25).tolist() == weights[1:].tolist()
        assert [id_ for part in kept for id_ in part.ids] == data.tokens(document)[span].tolist()
        is_text = data.roles(document)[0] == Role.TEXT
        cut = [part for part in sample.parts if part.cut]
        assert sum(part.tokens for part in cut) == (0 if is_text else len(data.tokens(document)) - span.stop)
        assert {part.weight(0.25) for part in cut} <= {0.0}
        numbers = {part.turn for part in sample.parts if part.role == Role.ANSWER}
        assert numbers == set(range(1, len(numbers) + 1))
        assert ("cut away" in sample.title(seq)) == bool(cut)


def test_a_piece_says_where_it_lies(data: TokenizedDataset, opened: OpenedTokenizer) -> None:
    text = next(number for number in range(DOCUMENTS) if data.outlines.texts[number] and data.lengths[number] > 20)
    length = int(data.lengths[text])
    read = as_read(data.outlines, Reading(seq=12))
    first, second, *_ = samples(data, opened.tokenizer, read, first_positions(read, text, 1))
    assert first.title(12) == f"document {text}: tokens 1 to 13 of {length} tokens"
    assert second.title(12).startswith(f"document {text}: tokens 13 to ")
    assert second.parts[0].ids[0] == first.parts[-1].ids[-1]
    assert second.label(second.parts[0]) == f"text, {second.tokens} tokens"


CONVERSATION = (
    Message("system", "w1"),
    Message("user", "w2 w3"),
    Message("assistant", "w4"),
    Message("user", "w5"),
    Message("assistant", "w6 w7 w8"),
)


def shown(opened: OpenedTokenizer, reading: Reading) -> list[Sample]:
    return conversation_samples([CONVERSATION, CONVERSATION[:3]], opened, reading, control=False)


def test_turns_are_numbered(opened: OpenedTokenizer) -> None:
    both, one = shown(opened, Reading(seq=64, turns="last"))
    assert [both.label(part).rsplit(",", 1)[0] for part in both.parts] == [
        "system",
        "turn 1, question",
        "turn 1, answer",
        "turn 2, question",
        "turn 2, answer",
    ]
    assert [part.weight(0.5) for part in both.parts] == [0.5, 0.5, 0.5, 0.5, 1.0]
    assert [part.weight(0.0) for part in one.parts] == [0.0, 0.0, 1.0]
    assert [one.label(part).rsplit(",", 1)[0] for part in one.parts] == ["system", "question", "answer"]


def test_a_turn_that_is_cut_away_is_shown_as_that(opened: OpenedTokenizer) -> None:
    whole, _ = shown(opened, Reading(seq=64))
    both, _ = shown(opened, Reading(seq=whole.length - 4, truncate="keep"))
    assert [part.text for part in both.parts] == [part.text for part in whole.parts]
    assert both.parts[-1].text == "<|im_start|>answer\nw6 w7 w8<|im_end|>\n"
    assert [(part.turn, part.cut, part.trained) for part in both.parts] == [
        (1, False, False),
        (1, False, False),
        (1, False, True),
        (2, True, False),
        (2, True, False),
    ]


def test_tokens_that_are_no_whole_character_are_spelt(hf_folder: Path) -> None:
    tokenizer = open_tokenizer(hf_folder).tokenizer
    text = "aé\n漢"
    ids = tokenizer.encode([open_tokenizer(hf_folder).template.render((Message("user", text), Message("assistant", "b")))[0]])[
        0
    ]
    texts = token_texts(tokenizer, ids.tolist())
    assert len(texts) == len(ids)
    assert not any("\N{REPLACEMENT CHARACTER}" in each for each in texts)
