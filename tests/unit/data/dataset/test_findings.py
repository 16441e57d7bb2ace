"""The hash of a row's texts, by which repeats and overlaps are found."""

from __future__ import annotations

from itertools import combinations

from medsft.core.data.dataset.findings import Tally
from medsft.core.data.sources.conversation import Conversation, Message, question_and_answer
from medsft.core.data.sources.row_format import RowFormat


def _hash(conversation: Conversation) -> int:
    tally = Tally()
    tally.add({}, conversation, RowFormat())
    return int(tally.hashes()[0])


def test_the_hash_of_a_question_and_its_answer_is_that_of_sets_on_disk() -> None:
    assert _hash(question_and_answer("q", "a", "s")) == int.from_bytes(bytes.fromhex("9fcf0ece1f7f691c"), "little")
    assert _hash(question_and_answer("Dose?", "5 mg 🙂")) == int.from_bytes(bytes.fromhex("11b1d5b007c95260"), "little")


def test_conversations_that_differ_have_other_hashes() -> None:
    turn = question_and_answer("q", "a")
    system = Message("system", "a")
    other = [
        turn,
        turn[:1],
        turn[1:],
        turn[::-1],
        (*turn, *turn),
        (system, *turn),
        (system,),
        (*turn, system),
        (*turn, turn[0]),
        (turn[0], turn[1]._replace(reasoning="r")),
        (turn[0], turn[1]._replace(trained=False)),
        (*turn, turn[0], turn[1]._replace(trained=False)),
    ]
    assert all(_hash(first) != _hash(second) for first, second in combinations(other, 2))
