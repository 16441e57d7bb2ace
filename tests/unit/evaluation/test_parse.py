"""What a written answer chooses, strictly."""

from __future__ import annotations

import pytest

from medsft.core.evaluation.parse import chosen_option, normalized, token_f1

LETTERS, OPTIONS = ("A", "B", "C", "D"), ("Vitamin A", "Vitamin C", "None of these", "2")
WORDS = ("yes", "no", "maybe")


@pytest.mark.parametrize(
    ("answer", "place"),
    [
        ("B", 1),
        (" B. Vitamin C", 1),
        ("(B) because of the gums", 1),
        ("B)\nmore", 1),
        ("Vitamin C.", 1),
        ("2", 3),
        ("It lacks ascorbic acid.\nThe answer is: B", 1),
        ("The answer is (B).", 1),
        ("Answer: **B**", 1),
        ("A patient with scurvy lacks it", None),
        ("A. Vitamin A. No, the answer is B", None),
        ("The answer is A or the answer is B", None),
        ("E", None),
        ("The answer is E", None),
        ("b", None),
        ("I cannot tell", None),
        ("The answer is Apples", None),
        ("", None),
    ],
)
def test_letters(answer: str, place: int | None) -> None:
    assert chosen_option(answer, LETTERS, OPTIONS) == place


@pytest.mark.parametrize(
    ("answer", "place"),
    [
        ("Yes", 0),
        ("yes, it does", 0),
        ("No.", 1),
        ("maybe\nbecause", 2),
        ("A long reason.\nThe answer is: maybe", 2),
        ("The answer is: yes", 0),
        ("Yes. The results answer the question.", 0),
        ("They answered about half of them.\nThe answer is: no", 1),
        ("It was answered. Answer: **maybe**", 2),
        ("No significant difference was found", None),
        ("Yes. But the answer is: no", None),
        ("The answer is: unknown", None),
        ("yes and no", None),
    ],
)
def test_words(answer: str, place: int | None) -> None:
    assert chosen_option(answer, WORDS, WORDS) == place


def test_open_answers_are_compared_as_in_squad() -> None:
    assert normalized("  The Potassium, of\nblood! ") == normalized("potassium of blood")
    assert token_f1("the serum potassium", "Potassium level in serum") == pytest.approx(2 * 2 / (2 + 4))
    assert token_f1("", "x") == 0.0
    assert token_f1("The.", "a") == 1.0


def test_the_text_of_one_option_that_is_the_label_of_another_is_neither() -> None:
    groups, labels = ["O", "A", "B", "AB"], ["A", "B", "C", "D"]
    assert chosen_option("B", labels, groups) is None
    assert chosen_option("AB", labels, groups) == 3
    assert chosen_option("A.", ["A", "B"], ["A", "other"]) == 0
