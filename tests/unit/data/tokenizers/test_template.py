from __future__ import annotations

import json
from pathlib import Path

import pytest
from kept import TEMPLATES

from medsft.core.data.sources.conversation import Conversation, Message, question_and_answer
from medsft.core.data.tokenizers.chat_template import load_chat_template
from medsft.core.data.tokenizers.template import Role, Template, builtin_template
from medsft.errors import DataError

PLAIN = question_and_answer(question="What?", answer="That.")
WITH_SYSTEM = question_and_answer(question="  a\n", answer=" {{ b }} ' \\n ", system="")


def _chat_folder(tmp_path: Path, jinja: str, **config: object) -> Path:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": jinja, **config}))
    return tmp_path


def test_meditron_is_the_text_of_the_original() -> None:
    template = builtin_template("meditron")
    assert template.text(WITH_SYSTEM) == (
        "<|im_start|>system\n<|im_end|>\n<|im_start|>question\n  a\n<|im_end|>\n<|im_start|>answer\n {{ b }} ' \\n <|im_end|>\n"
    )
    assert [segment.role for segment in template.render(WITH_SYSTEM)] == [Role.SYSTEM, Role.QUESTION, Role.ANSWER]
    assert [int(role) for role in Role] == [0, 1, 2, 3]


def test_chatml_differs_in_the_role_words_only() -> None:
    meditron, chatml = builtin_template("meditron"), builtin_template("chatml")
    renamed = meditron.text(PLAIN).replace("question", "user").replace("answer", "assistant")
    assert chatml.text(PLAIN) == renamed


@pytest.mark.parametrize("name", ["meditron", "chatml"])
def test_literal_ranges_are_what_people_wrote(name: str) -> None:
    written = [
        segment.text[first:last] for segment in builtin_template(name).render(WITH_SYSTEM) for first, last in segment.literal
    ]
    assert written == [message.content for message in WITH_SYSTEM]


@pytest.mark.parametrize("name", ["meditron", "chatml"])
@pytest.mark.parametrize("example", [PLAIN, WITH_SYSTEM])
def test_the_exported_chat_template_renders_the_training_text(tmp_path: Path, name: str, example: Conversation) -> None:
    template = builtin_template(name)
    exported = load_chat_template(_chat_folder(tmp_path, template.jinja), template.special_tokens)
    assert exported.text(example) == template.text(example)
    assert exported.text(example[:-1], add_generation_prompt=True) == template.text(example[:-1], add_generation_prompt=True)
    assert exported.stop_token == template.stop_token


@pytest.mark.parametrize("name", ["meditron", "chatml"])
def test_the_prompt_is_the_beginning_of_the_training_text(name: str) -> None:
    template = builtin_template(name)
    for example in (PLAIN, WITH_SYSTEM):
        prompt = template.text(example[:-1], add_generation_prompt=True)
        assert template.text(example) == f"{prompt}{example[-1].content}{template.stop_token}\n"


def test_an_unknown_role_is_refused_by_the_exported_template(tmp_path: Path) -> None:
    jinja = builtin_template("meditron").jinja.replace("'system': 'system', ", "")
    with pytest.raises(DataError, match="refuses such a document: this model knows the roles"):
        load_chat_template(_chat_folder(tmp_path, jinja), ("<|im_end|>",)).render(WITH_SYSTEM)


LLAMA_3 = (
    "{{- bos_token }}\n"
    "{%- for message in messages %}\n"
    "    {{- '<|start|>' + message['role'] + '<|end|>\\n\\n' + message['content'] | trim + '<|eot|>' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{- '<|start|>assistant<|end|>\\n\\n' }}{%- endif %}"
)
LLAMA_3_TOKENS = ("<|begin|>", "<|start|>", "<|end|>", "<|eot|>")


def _llama_3(tmp_path: Path) -> Template:
    return load_chat_template(_chat_folder(tmp_path, LLAMA_3, bos_token={"content": "<|begin|>"}), LLAMA_3_TOKENS)


def test_model_finds_the_answer_and_what_ends_it(tmp_path: Path) -> None:
    template = _llama_3(tmp_path)
    prompt, answer = template.render(question_and_answer(question=" q ", answer=" a "))
    assert prompt.text == "<|begin|><|start|>user<|end|>\n\nq<|eot|><|start|>assistant<|end|>\n\n"
    assert (answer.text, answer.role) == ("a<|eot|>", Role.ANSWER)
    assert template.stop_token == "<|eot|>"
    assert template.text((Message("user", " q "),), add_generation_prompt=True) == prompt.text


def test_model_marks_special_strings_of_people_as_literal(tmp_path: Path) -> None:
    template = _llama_3(tmp_path)
    example = question_and_answer(question="<|eot|>q<|end|><|end|>", answer="a <|begin|>", system="s")
    prompt, answer = template.render(example)
    written = [segment.text[first:last] for segment in (prompt, answer) for first, last in segment.literal]
    assert written == ["<|eot|>", "<|end|>", "<|end|>", "<|begin|>"]
    assert template.text(example) == (
        "<|begin|><|start|>system<|end|>\n\ns<|eot|><|start|>user<|end|>\n\n<|eot|>q<|end|><|end|><|eot|>"
        "<|start|>assistant<|end|>\n\na <|begin|><|eot|>"
    )


TWO_TURNS = (*question_and_answer(" q ", " a ", "s"), *question_and_answer("<|eot|>", "b <|end|>"))


def test_model_splits_every_turn(tmp_path: Path) -> None:
    template = _llama_3(tmp_path)
    segments = template.render(TWO_TURNS)
    assert [segment.role for segment in segments] == [Role.QUESTION, Role.ANSWER, Role.QUESTION, Role.ANSWER]
    heading = "<|start|>assistant<|end|>\n\n"
    assert [segment.text for segment in segments] == [
        f"<|begin|><|start|>system<|end|>\n\ns<|eot|><|start|>user<|end|>\n\nq<|eot|>{heading}",
        "a<|eot|>",
        f"<|start|>user<|end|>\n\n<|eot|><|eot|>{heading}",
        "b <|end|><|eot|>",
    ]
    written = [segment.text[first:last] for segment in segments for first, last in segment.literal]
    assert written == ["<|eot|>", "<|end|>"]
    assert template.render(TWO_TURNS[:-1], add_generation_prompt=True) == segments[:-1]


@pytest.mark.parametrize("name", ["meditron", "chatml"])
def test_every_message_is_a_segment_with_its_role(tmp_path: Path, name: str) -> None:
    template = builtin_template(name)
    segments = template.render(TWO_TURNS)
    assert [int(segment.role) for segment in segments] == [0, 1, 2, 1, 2]
    assert all(segment.text.endswith("<|im_end|>\n") for segment in segments)
    exported = load_chat_template(_chat_folder(tmp_path, template.jinja), template.special_tokens)
    assert exported.text(TWO_TURNS) == template.text(TWO_TURNS)
    *before, opening = template.render(TWO_TURNS[:-1], add_generation_prompt=True)
    assert tuple(before) == segments[:-1]
    assert segments[-1].text.startswith(opening.text)
    assert not opening.literal


def test_a_template_that_rewrites_earlier_answers_is_refused_for_several_turns_only(tmp_path: Path) -> None:
    rewriting = (
        "{% for m in messages %}{{ m.role + ':' }}{% if m.role == 'assistant' and not loop.last %}"
        "{{ m.content.split('</think>')|last }}{% else %}{{ m.content }}{% endif %}{{ '</s>' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    template = load_chat_template(_chat_folder(tmp_path, rewriting, eos_token="</s>"), ("</s>",))
    thought = question_and_answer("q", "<think>t</think>a")
    assert template.text(thought) == "user:q</s>assistant:<think>t</think>a</s>"
    with pytest.raises(DataError, match="writes an earlier answer in another way when messages follow") as caught:
        template.render((*thought, *PLAIN))
    assert "--template chatml" in caught.value.hint
    assert len(template.render((*PLAIN, *PLAIN))) == 4


def test_model_keeps_private_characters_of_people(tmp_path: Path) -> None:
    template = _llama_3(tmp_path)
    private = "\U0010fffd7\U0010fffd"
    example = question_and_answer(question=f"{private}<|eot|>{private}", answer="a")
    assert f"\n\n{private}<|eot|>{private}<|eot|>" in template.render(example)[0].text


def test_model_accepts_the_generation_tag_of_transformers(tmp_path: Path) -> None:
    jinja = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{%- generation -%} {{ m.content }}</s>{%- endgeneration -%}"
        "{% else %}[{{ m.content }}]{% endif %}{% endfor %}"
    )
    template = load_chat_template(_chat_folder(tmp_path, jinja, eos_token="</s>"), ("</s>",))
    assert [segment.text for segment in template.render(PLAIN)] == ["[What?]", "That.</s>"]


@pytest.mark.parametrize(
    ("jinja", "message"),
    [
        ("{% if %}", "not valid jinja"),
        ("{{ raise_exception('no') }}", "refuses such a document: no"),
        ("{{ messages|length }}{{ messages[0].content }}", "cannot be told from the rest"),
        ("{{ messages[0].content }}", "cannot be told from the rest"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "refuses such a document"),
        (None, "has no chat template"),
    ],
)
def test_templates_that_cannot_be_used_say_why(tmp_path: Path, jinja: str | None, message: str) -> None:
    folder = _chat_folder(tmp_path, jinja) if jinja else tmp_path
    with pytest.raises(DataError, match=message) as caught:
        load_chat_template(folder, ())
    assert "--template meditron" in caught.value.hint


def test_a_prompt_that_opens_a_thought_is_refused_by_name(tmp_path: Path) -> None:
    folder = _chat_folder(tmp_path, (TEMPLATES / "r1.jinja").read_text(), bos_token="<s>", eos_token="<｜end▁of▁sentence｜>")
    with pytest.raises(DataError, match=r"cannot be told from the rest: its prompt opens <think>"):
        load_chat_template(folder, ("<｜end▁of▁sentence｜>",))


def test_what_a_template_leaves_out_of_an_answer_is_told(tmp_path: Path) -> None:
    source = (TEMPLATES / "r1.jinja").read_text().replace("<think>\n", "")
    folder = _chat_folder(tmp_path, source, bos_token="<s>", eos_token="<｜end▁of▁sentence｜>")
    template = load_chat_template(folder, ("<｜end▁of▁sentence｜>",))
    [note] = template.notes
    assert "leaves out what stands before </think>" in note
    assert template.text(question_and_answer(question="q", answer="<think>t</think>a")).endswith(
        "<｜Assistant｜>a<｜end▁of▁sentence｜>"
    )


def test_a_template_without_an_end_needs_a_tokenizer_that_has_one(tmp_path: Path) -> None:
    source = (TEMPLATES / "noeos.jinja").read_text()
    with pytest.raises(DataError, match="writes no end token after an answer, and the tokenizer names none") as caught:
        load_chat_template(_chat_folder(tmp_path, source), ("<s>",))
    assert "eos_token" in caught.value.hint
    template = load_chat_template(_chat_folder(tmp_path, source, eos_token="</s>"), ("<s>", "</s>"))
    prompt, answer = template.render(question_and_answer(question="q", answer="a </s> b"))
    assert answer.text == "a </s> b\n\n</s>"
    assert answer.literal == ((2, 6),), "what a person wrote ends nothing"
    assert prompt.text.endswith("### Response:\n")


def test_blanks_and_words_that_are_tokens_end_nothing(tmp_path: Path) -> None:
    source = "{% for m in messages %}{{ m.content + '  \n' }}{% endfor %}"
    template = load_chat_template(_chat_folder(tmp_path, source, eos_token="</s>"), (), added_strings=("  ", "\n", "</s>"))
    assert template.stop_token == "</s>"
    assert template.render(PLAIN)[1].text == "That.  \n</s>"


def test_answers_weigh_one_in_the_loss_and_other_tokens_as_asked():
    assert [role.loss_weight(0.25) for role in (Role.SYSTEM, Role.QUESTION, Role.ANSWER)] == [0.25, 0.25, 1.0]
