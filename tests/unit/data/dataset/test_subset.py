"""What a run reads of conversations of several turns and of texts, and which of it is trained on: token after token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from role_sets import write_set

from medsft.core.data.dataset.copy_documents import copy_documents
from medsft.core.data.dataset.dataset import TokenizedDataset
from medsft.core.data.dataset.lengths import length_report
from medsft.core.data.dataset.subset import Reading, Subset, apply_truncation, as_read, cut_sentence
from medsft.core.data.tokenizers.template import Role
from medsft.errors import DataError

STOP = 9
Q, A, T = int(Role.QUESTION), int(Role.ANSWER), int(Role.TEXT)
LONGEST = 48


def turns(*sizes: tuple[int, int]) -> list[int]:
    """Roles of a conversation with turns of (question tokens, answer tokens)."""
    return [role for question, answer in sizes for role in [Q] * question + [A] * answer]


TWO = turns((3, 6), (4, 9))
FIVE = turns((5, 7), (2, 5), (3, 8), (1, 4), (6, 7))
ONE = turns((6, 20))
TEXT = [T] * 40
DOCUMENTS = [TWO, FIVE, ONE, TEXT, turns((12, 3), (2, 3))]


def ids(roles: list[int]) -> list[int]:
    """Tokens that differ; an answer's last but one token is its stop token, the last what a template writes behind it."""
    tokens = [10 + place for place in range(len(roles))]
    for first, behind in runs(roles):
        tokens[behind - 2] = STOP
        assert behind - first > 2
    return tokens


def runs(roles: list[int], role: int = A) -> list[tuple[int, int]]:
    """(first, behind) of each answer."""
    edges = [
        place for place in range(len(roles) + 1) if (roles[place - 1 : place] == [role]) != (roles[place : place + 1] == [role])
    ]
    return list(zip(edges[::2], edges[1::2], strict=True))


@pytest.fixture
def data(tmp_path: Path) -> TokenizedDataset:
    return write_set(tmp_path / "x", [ids(roles) for roles in DOCUMENTS], DOCUMENTS, stop_id=STOP, vocab_size=100)


def trained(data: TokenizedDataset, subset: Subset, position: int) -> list[int]:
    """Places of the tokens that are trained on, in their document."""
    document = int(subset.indices[position])
    labels = subset.trained(position, data.roles(document))
    assert len(labels) == subset.num_labels[position]
    assert labels.sum() == subset.answer_labels[position]
    return (np.flatnonzero(labels) + 1 + subset.starts[position]).tolist()


@pytest.mark.parametrize("mode", ["all", "last"])
@pytest.mark.parametrize("seq", range(8, LONGEST + 1))
def test_keep_cuts_whole_turns_from_the_end(data: TokenizedDataset, seq: int, mode: str) -> None:
    subset = apply_truncation(data.outlines, Reading(seq=seq, truncate="keep", turns=mode))
    conversations = [p for p in range(len(subset)) if DOCUMENTS[subset.indices[p]] is not TEXT]
    assert [int(subset.indices[p]) for p in conversations] == [0, 1, 2, 4]
    for position in conversations:
        roles = DOCUMENTS[subset.indices[position]]
        answers, kept = runs(roles), int(subset.lengths[position])
        assert kept <= seq + 1
        if len(roles) <= seq + 1:
            assert kept == len(roles)
        whole = [(first, behind) for first, behind in answers if behind - 1 <= min(kept, seq + 1)]
        begun = [(first, behind) for first, behind in answers if first < kept]
        if len(answers) == 1 or not whole:
            assert kept == min(len(roles), seq + 1)
            assert begun in ([], answers[:1])
        else:  # never an answer without its end, and never a token of the turn behind it
            assert begun == whole
            assert kept == min(whole[-1][1], seq + 1)
            assert len(whole) == len(answers) or answers[len(whole)][1] - 1 > seq + 1  # the next turn would not have fit
        wanted = begun if mode == "all" else begun[-1:]
        expected = [place for first, behind in wanted for place in range(max(first, 1), min(behind, kept))]
        assert trained(data, subset, position) == expected


@pytest.mark.parametrize("seq", [8, 9, 12, 13, 38, 39, 40])
@pytest.mark.parametrize("mode", ["all", "last"])
def test_a_text_is_read_in_pieces(data: TokenizedDataset, seq: int, mode: str) -> None:
    """Each token but the first is predicted once, whatever --truncate says."""
    for policy in ("keep", "drop"):
        subset = apply_truncation(data.outlines, Reading(seq=seq, truncate=policy, turns=mode))
        pieces = [position for position in range(len(subset)) if subset.indices[position] == 3]
        assert pieces == list(range(pieces[0], pieces[-1] + 1))
        assert len(pieces) == -(-39 // seq)
        assert [place for piece in pieces for place in trained(data, subset, piece)] == list(range(1, 40))
        assert [int(subset.starts[piece]) for piece in pieces] == [number * seq for number in range(len(pieces))]
        assert all(subset.num_labels[piece] == seq for piece in pieces[:-1])
        assert subset.left_out == data.num_documents - len(subset.documents)
    assert subset.at(np.array(pieces[::-1])).starts.tolist() == [int(subset.starts[piece]) for piece in pieces[::-1]]


def test_texts_of_any_length_are_no_error(tmp_path: Path) -> None:
    texts = [[T] * 100, [T] * 2, [T] * 9, [T] * 10]
    data = write_set(tmp_path / "x", texts, texts, stop_id=None, vocab_size=100)
    subset = apply_truncation(data.outlines, Reading(seq=8))
    assert subset.indices.tolist() == [0] * 13 + [1, 2, 3, 3]
    assert subset.num_labels.sum() == subset.answer_labels.sum() == sum(len(text) - 1 for text in texts)
    assert cut_sentence(data.outlines, subset, Reading(seq=8), "--data") == []
    report = length_report(data, 8)
    assert (report.texts, report.text_pieces, report.exceeding, report.answers_cut) == (4, 17, 0, 0)
    assert (report.turns, report.fitting_seq, report.trained) == ({}, 99, 117)
    lonely = write_set(tmp_path / "y", [[T], [T] * 9], [[T], [T] * 9], stop_id=None, vocab_size=100)
    with pytest.raises(DataError, match="1 would have nothing to train on"):
        apply_truncation(lonely.outlines, Reading(seq=8))


def test_copies_hold_what_is_read(data: TokenizedDataset, tmp_path: Path) -> None:
    reading = Reading(seq=15, truncate="keep", turns="last")
    subset = apply_truncation(data.outlines, reading)
    copied = copy_documents(data, subset, tmp_path / "copy")
    again = apply_truncation(copied.outlines, reading)
    assert again.lengths.tolist() == subset.lengths.tolist()
    assert again.answer_labels.tolist() == subset.answer_labels.tolist()
    for position, document in enumerate(subset.indices):
        expected = data.tokens(int(document))[subset.span(position)]
        np.testing.assert_array_equal(copied.tokens(position), expected)


def test_the_original_cuts_within_a_turn(data: TokenizedDataset) -> None:
    subset = apply_truncation(data.outlines, Reading(seq=15, truncate="keep", whole_turns=False))
    assert subset.lengths[subset.indices != 3].tolist() == [16, 16, 16, 16]
    assert trained(data, subset, 0) == [3, 4, 5, 6, 7, 8, 13, 14, 15]
    last = apply_truncation(data.outlines, Reading(seq=15, truncate="keep", whole_turns=False, turns="last"))
    assert trained(data, last, 0) == [13, 14, 15]


def test_a_report_says_what_is_lost_of_turns(data: TokenizedDataset) -> None:
    """At 16 tokens TWO and FIVE lose their turns from the second on, ONE a part, and the last document's second answer."""
    report = length_report(data, 15)
    assert report.turns == {1: 1, 2: 2, 5: 1}
    assert report.cut_from_turn == {2: 3}
    assert (report.exceeding, report.answers_cut, report.answers_lost, report.answers_without_end) == (4, 7, 6, 7)
    assert (report.texts, report.text_pieces) == (1, 3)
    assert report.trained == 6 + 7 + 10 + 39 + 3
    assert length_report(data, 15, turns="last").trained == report.trained
    assert length_report(data, 17, turns="last").trained == 6 + 4 + 12 + 39 + 3  # FIVE's second with its end
    assert length_report(data, 18).trained == 6 + 7 + 5 + 13 + 39 + 3 + 2
    assert length_report(data, 18, turns="last").trained == 6 + 5 + 13 + 39 + 2
    assert length_report(data, LONGEST).cut_from_turn == {}
    with pytest.raises(DataError) as caught:
        apply_truncation(data.outlines, Reading(seq=15))
    for part in ("4 longer than --seq 15 (the longest needs --seq 47)", "6 answers would be lost whole"):
        assert part in str(caught.value)


def test_a_document_made_for_a_turn_that_is_cut_is_left_out(tmp_path: Path) -> None:
    """With `split` the turns before it have documents of their own."""
    parts = [FIVE[:12], FIVE[:19], FIVE[:30], FIVE[:35], FIVE]
    data = write_set(tmp_path / "x", [ids(roles) for roles in parts], parts, stop_id=STOP, vocab_size=100)
    kept = {}
    for seq in (8, 11, 17, 18, 29, 47):
        reading = Reading(seq=seq, truncate="keep", turns="split")
        subset = apply_truncation(data.outlines, reading)
        kept[seq] = (subset.indices.tolist(), subset.left_out, [len(trained(data, subset, p)) for p in range(len(subset))])
    assert kept == {
        8: ([0], 4, [4]),
        11: ([0], 4, [7]),
        17: ([0, 1], 3, [7, 4]),
        18: ([0, 1], 3, [7, 5]),
        29: ([0, 1, 2], 2, [7, 5, 8]),
        47: ([0, 1, 2, 3, 4], 0, [7, 5, 8, 4, 7]),
    }
    report = length_report(data, 17, turns="split")
    assert (report.answers_cut, report.answers_lost, report.answers_without_end) == (4, 3, 3)
    assert (report.trained, report.unsupervised) == (sum(kept[17][2]), 3)
    shown = as_read(data.outlines, Reading(seq=17, truncate="keep", turns="split"))
    assert [len(trained(data, shown, position)) for position in range(5)] == [7, 4, 0, 0, 0]


def test_documents_that_do_not_fit_are_shown_whole_where_they_are_not_cut(data: TokenizedDataset) -> None:
    read = as_read(data.outlines, Reading(seq=15, truncate="error"))
    assert read.lengths[read.indices != 3].tolist() == [22, 48, 26, 20]
    assert read.lengths[read.indices == 3].tolist() == [16, 16, 10]
