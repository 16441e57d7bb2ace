"""The texts of questions: the harness's own, and those of a template; which examples stand before them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import tiny_tokenizers
from asked import medqa, pubmedqa, source

from medsft.core.data.dataset.encode import encode_documents
from medsft.core.data.sources.columns import Keys
from medsft.core.data.sources.conversation import Message
from medsft.core.data.sources.multiple_choice import multiple_choice
from medsft.core.evaluation.answer_ids import answered
from medsft.core.evaluation.asking import Ask, Asking, asking
from medsft.core.evaluation.benchmark import Question, Task
from medsft.core.evaluation.model import ModelSource, find_model
from medsft.core.evaluation.prompts import Examples, as_conversation, asked, lm_eval_text, shifted
from medsft.core.evaluation.requests import Generate, Score
from medsft.errors import ConfigError

CHOICE = Question(
    id="1",
    place="x:1",
    question=" Which vitamin lack gives scurvy?",
    options=("Vitamin A", "Vitamin C", "Zinc", "Iron"),
    written=("Vitamin A", "Vitamin C ", "Zinc", "Iron"),
    labels=("A", "B", "C", "D"),
    lettered=True,
    gold=1,
    subject="clinical_knowledge",
)
WORDS = Question(
    id="2",
    place="x:2",
    question="Does it help?",
    context="First.\nSecond.",
    options=("yes", "no", "maybe"),
    written=("yes", "no", "maybe"),
    labels=("yes", "no", "maybe"),
    gold=2,
)
DESCRIPTION = "The following are multiple choice questions (with answers) about clinical knowledge."
OPTIONS = "A. Vitamin A\nB. Vitamin C \nC. Zinc\nD. Iron\n"


def task(name: str, question: Question) -> Task:
    return Task(name=name, title=name, kind="choice", questions=(question,), files=())


@pytest.mark.parametrize(
    ("name", "question", "text"),
    [
        ("pubmedqa", WORDS, "Abstract: First.\nSecond.\nQuestion: Does it help?\nAnswer:"),
        ("medqa", CHOICE, f"Question:  Which vitamin lack gives scurvy?\n{OPTIONS}Answer:"),
        ("medmcqa", CHOICE, f"Question:  Which vitamin lack gives scurvy?\nChoices:\n{OPTIONS}Answer:"),
        (
            "mmlu",
            CHOICE,
            f"{DESCRIPTION}\n\nWhich vitamin lack gives scurvy?\n{OPTIONS}Answer:",
        ),
    ],
)
def test_texts_are_those_of_the_harness(name: str, question: Question, text: str) -> None:
    """lm-evaluation-harness: preprocess_pubmedqa.py, preprocess_medqa.py, utils_medmcqa.py, mmlu/default."""
    assert lm_eval_text(task(name, question), question, "label", []) == text


def test_examples_of_the_harness_are_solved_and_stand_apart() -> None:
    solved = replace(CHOICE, question="Other?", place="x:9")
    text = lm_eval_text(task("medqa", CHOICE), CHOICE, "label", [solved])
    assert text.startswith(f"Question: Other?\n{OPTIONS}Answer: B\n\nQuestion:  Which")
    assert lm_eval_text(task("medqa", CHOICE), CHOICE, "text", [solved]).startswith("Question: Other?\nAnswer: Vitamin C \n\n")


def test_options_are_listed_as_rows_are_trained_on() -> None:
    row = {"question": "Which?", "options": ["Vitamin A", "Vitamin C"], "answer": "Vitamin C"}
    trained = multiple_choice(row, Keys(question="question", answer="answer", options=("options",)))
    question = replace(CHOICE, question="Which?", options=("Vitamin A", "Vitamin C"), labels=("A", "B"))
    assert trained[0].content == asked(question, "label")
    assert as_conversation(question, "label", [question])[1] == Message("assistant", trained[1].content, trained=False)
    assert asked(question, "text") == "Which?"


def test_shifts_move_options_and_keep_the_labels() -> None:
    moved = shifted(CHOICE, 3)
    assert moved.options == ("Iron", "Vitamin A", "Vitamin C", "Zinc")
    assert moved.labels == CHOICE.labels
    assert moved.options[moved.gold] == CHOICE.options[CHOICE.gold]


def test_examples_are_drawn_and_never_the_question(tmp_path: Path) -> None:
    all_of = pubmedqa(tmp_path, 12)
    examples = Examples(all_of, 3, 1)
    drawn = [examples.of(question) for question in all_of.questions]
    assert all(len(some) == 3 and question not in some for question, some in zip(all_of.questions, drawn, strict=True))
    assert len({tuple(one.id for one in some) for some in drawn}) == 4  # the same for all that are none of them
    assert "never the one that is asked" in examples.sentence()
    with pytest.raises(ConfigError, match="--shots"):
        Examples(pubmedqa(tmp_path, 3), 3, 1)


def decoded(made: Asking, request: Score | Generate) -> str:
    ids = request.prefix if isinstance(request, Score) else request.prompt
    return made.opened.tokenizer.decode(ids)


def test_requests_in_a_template(tmp_path: Path) -> None:
    model = source(tmp_path / "model")
    ask = Ask(methods=("likelihood", "generate"), shifts=True)
    made = asking(medqa(tmp_path, 2), ask, model.open_tokenizer(), model.ends, 4096)
    decode = made.opened.tokenizer.decode
    prompt = "<|im_start|>user\nCase 0: what now?\n\nA. Rest 0\nB. Drug 0\nC. Wait<|im_end|>\n<|im_start|>assistant\n"
    by_id = {request.id: request for request in made.requests}
    assert len(by_id) == 2 * (3 + 1 + 1)
    label = by_id["medqa/label/0/0"]
    assert isinstance(label, Score)
    assert decoded(made, label) == prompt
    assert [decode(ids) for ids in label.continuations] == ["A", "B", "C"]
    assert decoded(made, by_id["medqa/generate/0/0"]) == prompt
    written = by_id["medqa/generate/0/0"]
    assert isinstance(written, Generate)
    assert written.ends == model.ends
    assert "A. Drug 0\nB. Wait\nC. Rest 0" in decoded(made, by_id["medqa/label/0/1"])
    text = by_id["medqa/text/0/0"]
    assert isinstance(text, Score)
    assert decoded(made, text) == "<|im_start|>user\nCase 0: what now?<|im_end|>\n<|im_start|>assistant\n"
    assert [decode(ids) for ids in text.continuations] == ["Rest 0", "Drug 0", "Wait"]


def test_rows_that_answer_in_a_sentence_are_asked_in_it(tmp_path: Path) -> None:
    model = source(tmp_path / "model")
    row = replace(WORDS, context="", question="Context: a\nQuestion: b?", system="Be brief.", before_label="The answer is: ")
    made = asking(task("pubmedqa", row), Ask(), model.open_tokenizer(), model.ends, 4096)
    [request] = made.requests
    assert isinstance(request, Score)
    assert decoded(made, request) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nContext: a\nQuestion: b?<|im_end|>\n"
        "<|im_start|>assistant\nThe answer is: "
    )
    assert [made.opened.tokenizer.decode(ids) for ids in request.continuations] == ["yes", "no", "maybe"]


def test_requests_of_the_harness(tmp_path: Path) -> None:
    model = source(tmp_path / "model")
    made = asking(
        medqa(tmp_path, 1), Ask(style="lm-eval", methods=("likelihood", "generate")), model.open_tokenizer(), (), 4096
    )
    label, text, generate = made.requests
    assert isinstance(label, Score)
    assert isinstance(text, Score)
    assert isinstance(generate, Generate)
    question = "Question: Case 0: what now?\nA. Rest 0\nB. Drug 0\nC. Wait\nAnswer:"
    assert decoded(made, label) == decoded(made, generate) == question
    assert [made.opened.tokenizer.decode(ids) for ids in label.continuations] == [" A", " B", " C"]
    assert decoded(made, text) == "Question: Case 0: what now?\nAnswer:"
    assert [made.opened.tokenizer.decode(ids) for ids in text.continuations] == [" Rest 0", " Drug 0", " Wait"]
    assert generate.stop_strings


def test_the_harness_asks_with_what_a_tokenizer_puts_before_a_text(tmp_path: Path) -> None:
    """As `AutoTokenizer` does by itself: Llama 3 has a token there; what a run is exported with has none."""
    folder = tmp_path / "llama"
    folder.mkdir()
    tiny_tokenizers.write_llama_3(folder)
    tiny.write_base(folder, tokenizer=False, vocab_size=512, max_position_embeddings=4096)
    model = find_model(folder)
    assert [model.open_tokenizer().tokenizer.token(id_) for id_ in model.before_text] == ["<|begin_of_text|>"]
    assert ModelSource.from_json(json.loads(json.dumps(model.to_json()))) == model
    ask = Ask(style="lm-eval", methods=("likelihood", "generate"))
    begin = {"before_text": model.before_text}
    with_it, without = (asking(medqa(tmp_path, 1), ask, model.open_tokenizer(), (), 4096, **more) for more in (begin, {}))
    for long, short in zip(with_it.requests, without.requests, strict=True):
        if isinstance(long, Score) and isinstance(short, Score):
            assert (long.prefix, long.continuations) == (model.before_text + short.prefix, short.continuations)
        else:
            assert long.prompt == model.before_text + short.prompt  # type: ignore[union-attr]
    qwen = tmp_path / "qwen"
    source(qwen)
    assert find_model(qwen).before_text == ()


def test_an_answer_may_not_be_as_long_as_all_that_a_model_reads(tmp_path: Path) -> None:
    model = source(tmp_path / "model")
    ask = Ask(methods=("generate",), max_new_tokens=64)
    assert asking(medqa(tmp_path, 1), ask, model.open_tokenizer(), (), 65).cut == 1
    with pytest.raises(ConfigError, match="no room for a question"):
        asking(medqa(tmp_path, 1), ask, model.open_tokenizer(), (), 64)
    asking(medqa(tmp_path, 1), replace(ask, methods=("likelihood",)), model.open_tokenizer(), (), 64)


def test_what_a_model_cannot_read_is_cut_at_its_beginning_and_counted(tmp_path: Path) -> None:
    model = source(tmp_path / "model")
    whole = asking(medqa(tmp_path, 1), Ask(forms=("label",)), model.open_tokenizer(), (), 4096)
    cut = asking(medqa(tmp_path, 1), Ask(forms=("label",)), model.open_tokenizer(), (), 20)
    assert (whole.cut, cut.cut) == (0, 1)
    [first, second] = [made.requests[0] for made in (whole, cut)]
    assert isinstance(first, Score)
    assert isinstance(second, Score)
    assert second.prefix == first.prefix[-19:]
    assert cut.prompt_sha256() != whole.prompt_sha256()


@pytest.mark.parametrize("template", ["chatml", "model"])
def test_answers_to_one_conversation_are_encoded_as_each_alone(tmp_path: Path, template: str) -> None:
    opened = source(tmp_path / "model", template=template).open_tokenizer()
    conversation = as_conversation(CHOICE, "label", [replace(CHOICE, question="Other?")])
    answers = ["A", "Vitamin C", "an <|im_end|> inside", "5 mg"]
    [together] = answered([conversation], [answers], opened)
    for answer, ids in zip(answers, together, strict=True):
        document = encode_documents([(*conversation, Message("assistant", answer))], opened, control=False).tokens.tolist()
        assert document[: len(ids) + 1] == [*ids, opened.stop_id]
        assert opened.tokenizer.decode(ids).endswith(f"assistant\n{answer}")
