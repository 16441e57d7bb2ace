from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medsft.core.data.dataset.dataset import TokenizedDataset, open_tokenized, role_prefix, text_prefix
from medsft.core.data.dataset.indexed import IndexedWriter
from medsft.core.data.dataset.lengths import length_report
from medsft.core.data.dataset.manifest import Manifest, write_manifest
from medsft.core.data.dataset.samples import samples
from medsft.core.data.dataset.spec import TokenizeSpec
from medsft.core.data.dataset.subset import Reading, apply_truncation, as_read, cut_sentence
from medsft.core.data.dataset.tokenize import tokenize
from medsft.core.data.tokenizers.open import open_tokenizer
from medsft.core.data.tokenizers.template import Role
from medsft.errors import DataError

TAIL = 1


def _set(folder: Path, shapes: list[tuple[int, int]]) -> TokenizedDataset:
    """Documents of (question tokens, answer tokens); the last answer token stands for the newline after its end."""
    folder.mkdir(exist_ok=True)
    sizes = np.array([question + answer for question, answer in shapes])
    roles = np.concatenate([np.repeat([1, 2], shape) for shape in shapes])
    with IndexedWriter(text_prefix(folder), "<u2") as text, IndexedWriter(role_prefix(folder), "<u2") as role:
        text.add(np.arange(len(roles)) % 100, sizes)
        role.add(roles, sizes)
        text.close()
        role.close()
    counts = (0, int((roles == 1).sum()), int((roles == 2).sum()))
    manifest = Manifest(
        recipe=None, documents=len(sizes), tokens=len(roles), tokens_by_role=counts, vocab_size=100, answer_tail=TAIL,
        text_bytes=2 * len(roles), text_sha256="t", role_bytes=2 * len(roles), role_sha256="r",
    )  # fmt: skip
    write_manifest(folder, manifest)
    return open_tokenized(folder)


def test_report_counts_what_a_sequence_length_does(tmp_path: Path) -> None:
    shapes = [(3, 3), (4, 4), (4, 5), (4, 6), (8, 2), (9, 2), (0, 1)]
    report = length_report(_set(tmp_path / "x", shapes), seq=7)
    assert dataclasses.asdict(report) == {
        "seq": 7,
        "documents": 7,
        "tokens": 55,
        "tokens_by_role": {Role.SYSTEM: 0, Role.QUESTION: 32, Role.ANSWER: 23},
        "shortest": 1,
        "longest": 11,
        "mean": 55 / 7,
        "percentiles": {1: 6, 5: 6, 25: 8, 50: 9, 75: 10, 95: 11, 99: 11},
        "turns": {1: 7},
        "exceeding": 4,  # (4, 5) (4, 6) (8, 2) (9, 2)
        "answers_cut": 4,
        "answers_without_end": 3,  # (4, 5) loses only what follows its end
        "answers_lost": 2,  # (8, 2) (9, 2)
        "cut_from_turn": {},
        "unsupervised": 3,  # (8, 2) (9, 2), and (0, 1), whose one answer token is never predicted
        "trained": 15,  # 3 + 4 + 4 + 4
        "texts": 0,
        "text_pieces": 0,
        "fitting_seq": 10,
    }


ANSWER_TOKENS = st.just(0) | st.integers(TAIL + 1, 12)


@given(
    shapes=st.lists(st.tuples(st.integers(0, 12), ANSWER_TOKENS).filter(any), min_size=1, max_size=12),
    seq=st.integers(1, 24),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_report_equals_counting_label_by_label(tmp_path: Path, shapes: list[tuple[int, int]], seq: int) -> None:
    data = _set(tmp_path / "x", shapes)
    exceeding = cut = without_end = unsupervised = 0
    for number in range(data.num_documents):
        roles = data.roles(number).tolist()
        kept = roles[: seq + 1]
        answers, kept_answers = roles.count(2), kept.count(2)
        exceeding += len(roles) - 1 > seq
        cut += kept_answers < answers
        without_end += bool(answers) and kept_answers < answers - TAIL
        unsupervised += 2 not in kept[1:]
    report = length_report(data, seq)
    assert (report.exceeding, report.answers_cut, report.answers_without_end, report.unsupervised) == (
        exceeding, cut, without_end, unsupervised,
    )  # fmt: skip
    assert not length_report(data, report.fitting_seq).exceeding


def test_error_says_how_many_and_what_to_do(tmp_path: Path) -> None:
    data = _set(tmp_path / "x", [(3, 3), (4, 6), (8, 2)])
    with pytest.raises(DataError) as caught:
        apply_truncation(data.outlines, Reading(seq=7, truncate="error"), flag="--val")
    message = str(caught.value)
    assert message.startswith("--val: not all of the 3 documents")
    assert "2 longer than --seq 7 (the longest needs --seq 9)" in message
    assert "1 would have nothing to train on" in message
    assert "--truncate drop" in message
    assert apply_truncation(data.outlines, Reading(seq=9, truncate="error")).indices.tolist() == [0, 1, 2]


def test_drop_leaves_out_what_is_too_long_or_has_nothing_to_learn(tmp_path: Path) -> None:
    data = _set(tmp_path / "x", [(3, 3), (4, 6), (5, 0), (2, 2)])
    selection = apply_truncation(data.outlines, Reading(seq=7, truncate="drop"))
    assert (selection.indices.tolist(), selection.lengths.tolist()) == ([0, 3], [6, 4])
    assert selection.left_out == 2
    assert selection.supervised.all()
    with_questions = apply_truncation(data.outlines, Reading(seq=7, truncate="drop", loss_mask=0.5))
    assert with_questions.indices.tolist() == [0, 2, 3]
    assert with_questions.supervised.tolist() == [True, False, True]


def test_keep_cuts_on_the_right_and_counts(tmp_path: Path) -> None:
    data = _set(tmp_path / "x", [(3, 3), (4, 6), (9, 2), (1, 0)])
    selection = apply_truncation(data.outlines, Reading(seq=7, truncate="keep"))
    assert cut_sentence(data.outlines, selection, Reading(seq=7), "--data") == [
        "--data: 2 documents are cut at --seq 7. Answers lost whole: 1; in part: 1, of these without their end: 1."
    ]
    assert (selection.indices.tolist(), selection.lengths.tolist()) == ([0, 1, 2], [6, 8, 8])
    assert selection.left_out == 1
    assert selection.answer_labels.tolist() == [3, 4, 0]


def test_a_document_without_answer_is_an_error_only_when_answers_alone_weigh(tmp_path: Path) -> None:
    data = _set(tmp_path / "x", [(3, 3), (5, 0)])
    with pytest.raises(DataError, match="1 would have nothing to train on"):
        apply_truncation(data.outlines, Reading(seq=100, truncate="error"))
    assert apply_truncation(data.outlines, Reading(seq=100, truncate="error", loss_mask=1.0)).indices.tolist() == [0, 1]


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no document is left"):
        apply_truncation(_set(tmp_path / "x", [(9, 9)]).outlines, Reading(seq=7, truncate="drop"))


def test_samples_show_the_text_with_its_roles(tmp_path: Path, hf_folder: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "the dose?", "gold": "5 mg é"}\n{"prompt": "x", "gold": "y"}\n')
    data = tokenize(TokenizeSpec(data=(path,), tokenizer=hf_folder), tmp_path / "x")
    read = as_read(data.outlines, Reading(seq=2048))
    [second, first] = samples(data, open_tokenizer(hf_folder).tokenizer, read, [1, 0])
    assert (second.document, first.document) == (1, 0)
    assert [(part.role, part.text) for part in first.parts] == [
        (Role.QUESTION, "<|im_start|>question\nthe dose?<|im_end|>\n"),
        (Role.ANSWER, "<|im_start|>answer\n5 mg é<|im_end|>\n"),
    ]
    assert first.length == sum(part.tokens for part in first.parts) == data.lengths[0]
