"""What keys of rows are usually called, by which `recognize` finds them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

QUESTION = (
    *("prompt", "question", "instruction", "query", "input"),
    *("frage", "pregunta", "domanda", "pergunta", "vraag"),
)
"""In this order: Alpaca's rows have `instruction` and, often empty, `input`. Then what tables of hospitals call it."""
ANSWER = (
    *("gold", "answer", "output", "response", "completion", "target"),
    *("antwort", "réponse", "reponse", "respuesta", "risposta", "resposta", "antwoord"),
)
SYSTEM = ("system", "system_prompt")
MESSAGES = ("messages", "conversations", "conversation", "chat", "dialog", "dialogue")
INSTRUCTION = ("instruction",)
INPUT = ("input", "context")
"""The second is Dolly's"""
OUTPUT = ("output", "response", "answer", "completion")
TEXT = ("text",)
MCQ_QUESTION = ("question", "prompt", "query", "question_stem", "stem")
OPTIONS = ("options", "choices", "answer_choices")
OPTION_COLUMNS = (
    tuple(f"op{letter}" for letter in "abcdefgh"),
    tuple(f"option_{letter}" for letter in "abcdefgh"),
    tuple(f"option{number}" for number in range(1, 9)),
    tuple("abcdefgh"),
)
"""One key for each option: of MedMCQA and of tables"""
RIGHT_OPTION = (
    *("answer_idx", "cop", "answerkey", "answer_key", "correct_option", "correct_answer", "answer", "gold"),
    *("answer_index", "correct", "label", "target"),
)


def usual(keys: Iterable[str], wanted: Sequence[str]) -> list[str]:
    """Return the keys with a usual name in any case, the more usual first; of objects inside the row where the row has none."""
    keys = tuple(keys)
    outer = [key for name in wanted for key in keys if key.lower() == name]
    return outer or [key for name in wanted for key in keys if key.lower().endswith(f".{name}")]


def first(keys: Iterable[str], wanted: Sequence[str]) -> str | None:
    """Return the most usual of them, None where there is none."""
    return next(iter(usual(keys, wanted)), None)


def option_columns(keys: Collection[str]) -> tuple[str, ...]:
    """Return the keys of a row that has one for each option, at least three from the first on; else none."""
    for names in OPTION_COLUMNS:
        found = [key for name in names for key in keys if key.lower().rpartition(".")[2] == name]
        if len(found) > 2 and found[2].lower().endswith(names[2]) and len({key.rpartition(".")[0] for key in found}) == 1:
            return tuple(found)
    return ()
