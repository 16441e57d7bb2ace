"""What is trained on follows from the roles alone: a document may have any number of answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from role_sets import write_set

from medsft.core.data.dataset import dataset
from medsft.core.data.dataset.answers import find_answers
from medsft.core.data.dataset.dataset import TokenizedDataset, answers_path, open_tokenized
from medsft.core.data.dataset.lengths import length_report
from medsft.core.data.dataset.samples import samples
from medsft.core.data.dataset.subset import Reading, apply_truncation, as_read, cut_sentence
from medsft.core.data.tokenizers.open import open_tokenizer
from medsft.core.data.tokenizers.template import Role
from medsft.errors import DataError

STOP = 9
Q, A = int(Role.QUESTION), int(Role.ANSWER)


def make_set(folder: Path, roles: list[list[int]], tokens: list[list[int]] | None = None) -> TokenizedDataset:
    """A set of these roles. Without tokens an answer's last but one token is its stop token."""
    return write_set(folder, tokens or [_with_stops(document) for document in roles], roles, stop_id=STOP, vocab_size=100)


def _with_stops(roles: list[int]) -> list[int]:
    ids = [1] * len(roles)
    for place, role in enumerate(roles):
        if role == A and place > 0 and roles[place - 1] == A and (place + 1 == len(roles) or roles[place + 1] != A):
            ids[place - 1] = STOP
    return ids


TWO = [Q] * 3 + [A] * 3 + [Q] * 2 + [A] * 4
"""Answers at 3..5 and 8..11; stop tokens at 4 and 10."""
ONE = [Q] * 2 + [A] * 2


def test_a_report_counts_answers_and_not_documents(tmp_path: Path) -> None:
    data = make_set(tmp_path / "x", [TWO, ONE])
    assert data.answers.columns().tolist() == [[0, 3, 5, 6], [0, 8, 11, 12], [1, 2, 3, 4]]
    facts = {}
    for seq in (11, 10, 9, 7, 4, 3, 2):
        report = length_report(data, seq)
        facts[seq] = (report.exceeding, report.answers_cut, report.answers_without_end, report.unsupervised)
    assert facts == {
        11: (0, 0, 0, 0),
        10: (1, 1, 0, 0),  # only what follows the last stop token
        9: (1, 1, 1, 0),
        7: (1, 1, 1, 0),  # the second answer is gone, the first is whole
        4: (1, 2, 1, 0),  # of the first answer only what follows its stop token is cut
        3: (1, 2, 2, 0),
        2: (2, 3, 2, 1),
    }


def test_truncation_counts_answers(tmp_path: Path) -> None:
    data = make_set(tmp_path / "x", [TWO, ONE, TWO])
    kept = apply_truncation(data.outlines, Reading(seq=7, truncate="keep"))
    assert kept.answer_labels.tolist() == [3, 2, 3]
    [sentence] = cut_sentence(data.outlines, kept, Reading(seq=7), "--val")
    assert sentence == (
        "--val: 2 documents are cut at --seq 7. Answers lost whole: 2; in part: 0, of these without their end: 0. "
        "Conversations of several turns, cut from turn 2 on: 2."
    )
    whole_turns = Reading(seq=8, truncate="keep")
    kept = apply_truncation(data.outlines, whole_turns)
    assert (kept.answer_labels.tolist(), kept.lengths.tolist()) == ([3, 2, 3], [6, 4, 6])
    as_the_original = Reading(seq=8, truncate="keep", whole_turns=False)
    kept = apply_truncation(data.outlines, as_the_original)
    assert (kept.answer_labels.tolist(), kept.lengths.tolist()) == ([4, 2, 4], [9, 4, 9])
    [sentence] = cut_sentence(data.outlines, kept, as_the_original, "--val")
    assert sentence == (
        "--val: 2 documents are cut at --seq 8. Answers lost whole: 0; in part: 2, of these without their end: 2. "
        "Conversations of several turns, cut from turn 2 on: 2."
    )
    assert apply_truncation(data.outlines, Reading(seq=7, truncate="drop")).indices.tolist() == [1]
    assert apply_truncation(data.outlines, Reading(seq=11, truncate="error")).answer_labels.tolist() == [7, 2, 7]
    with pytest.raises(DataError) as caught:
        apply_truncation(data.outlines, Reading(seq=4, truncate="error"))
    message = str(caught.value)
    assert "2 longer than --seq 4 (the longest needs --seq 11)" in message
    assert "2 answers would be lost whole" in message
    assert "2 answers would lose a part" in message
    assert "their end" not in message  # of the first answers only what follows their end is cut


ROLES = st.lists(st.lists(st.sampled_from([0, Q, A]), min_size=1, max_size=14), min_size=1, max_size=8)


@given(roles=ROLES, stops=st.lists(st.booleans(), min_size=14 * 8, max_size=14 * 8), seq=st.integers(1, 16))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
def test_counts_equal_looking_at_token_after_token(tmp_path: Path, roles: list[list[int]], stops: list[bool], seq: int) -> None:
    flags = iter(stops)
    tokens = [[STOP if next(flags) else 1 for _ in document] for document in roles]
    data = make_set(tmp_path / "x", roles, tokens)
    cut = endless = unsupervised = 0
    labels = []
    for document, ids in zip(roles, tokens, strict=True):
        runs = _runs(document)
        cut += sum(behind > seq + 1 for _, behind in runs)
        for first, behind in runs:
            ends = [place + 1 for place in range(first, behind) if ids[place] == STOP]
            endless += (ends[-1] if ends else behind) > seq + 1
        labels.append(document[1 : seq + 1].count(A))
        unsupervised += labels[-1] == 0
    report = length_report(data, seq)
    assert (report.answers_cut, report.answers_without_end, report.unsupervised) == (cut, endless, unsupervised)
    assert data.answers.labels(np.minimum(data.lengths, seq + 1)).tolist() == labels


def _runs(roles: list[int]) -> list[tuple[int, int]]:
    """(first, behind) of each answer, found one token after the other."""
    runs: list[tuple[int, int]] = []
    for place, role in enumerate(roles):
        if role == A and place and roles[place - 1] == A:
            runs[-1] = (runs[-1][0], place + 1)
        elif role == A:
            runs.append((place, place + 1))
    return runs


def test_blocks_do_not_change_what_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_set(tmp_path / "x", [TWO, ONE, [A], TWO, [Q], ONE])
    whole = data.scan_answers()
    monkeypatch.setattr(dataset, "_BLOCK_TOKENS", 2)
    assert data.scan_answers().same_as(whole)
    assert whole.document.tolist() == [0, 0, 1, 2, 3, 3, 5]


def test_answers_of_neighbors_do_not_run_together() -> None:
    found = find_answers(np.array([A, A, A]), np.array([1, 0, 2]), stops=None)
    assert found.columns().tolist() == [[0, 0, 1, 1], [2, 0, 2, 2]]


def test_a_file_of_the_first_version_is_read_where_it_is_right(tmp_path: Path) -> None:
    """It has the first place of all answers and the one behind the last: no answer at all is (0, 0)."""
    one = make_set(tmp_path / "one", [ONE, [Q, Q], ONE])
    np.save(answers_path(one.folder), np.array([[2, 4], [0, 0], [2, 4]], np.int32))
    assert open_tokenized(one.folder).answers.columns().tolist() == [[0, 2, 4, 4], [2, 2, 4, 4]]
    two = make_set(tmp_path / "two", [TWO])
    np.save(answers_path(two.folder), np.array([[3, 12]], np.int32))
    again = open_tokenized(two.folder)
    assert again.stored_answers() is None
    assert again.answers.columns().tolist() == [[0, 3, 5, 6], [0, 8, 11, 12]]


@pytest.mark.parametrize("row", [[1, 3, 5, 6], [-1, 3, 5, 6], [0, 3, 5, 13], [0, 6, 5, 6], [0, -1, 5, 6]])
def test_places_that_cannot_be_are_damage(tmp_path: Path, row: list[int]) -> None:
    data = make_set(tmp_path / "x", [TWO])
    np.save(answers_path(data.folder), np.array([row], np.int32))
    again = open_tokenized(data.folder)
    with pytest.raises(DataError, match=r"x-answers\.npy is damaged"):
        length_report(again, 8)
    assert not again.answers_agree()
    np.save(answers_path(data.folder), np.array([[0, 3, 5, 6], [0, 8, 11, 11]], np.int32))
    assert not open_tokenized(data.folder).answers_agree()


def test_samples_show_each_answer(tmp_path: Path, hf_folder: Path) -> None:
    data = make_set(tmp_path / "x", [TWO])
    read = as_read(data.outlines, Reading(seq=20))
    [sample] = samples(data, open_tokenizer(hf_folder).tokenizer, read, [0])
    assert [(part.role, part.tokens) for part in sample.parts] == [(Q, 3), (A, 3), (Q, 2), (A, 4)]
