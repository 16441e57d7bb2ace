"""What other programs read in an exported tokenizer: the ids, the ends and the assistant's tokens of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kept import TEMPLATES
from tiny_tokenizers import BASES, KINDS, write_llama_3, write_qwen, write_sentence_piece

from medsft.core.data.dataset.encode import encode_documents
from medsft.core.data.sources.conversation import Conversation, question_and_answer
from medsft.core.data.tokenizers.base import OpenedTokenizer
from medsft.core.data.tokenizers.end_tokens import end_tokens, pad_id
from medsft.core.data.tokenizers.export import export_tokenizer
from medsft.core.data.tokenizers.open import open_tokenizer
from medsft.core.data.tokenizers.template import Role
from medsft.core.data.tokenizers.tokenizer_config import chat_template

EXAMPLES = [
    question_and_answer(
        question="What is the dose of aspirin?\n\n 5 mg  or 6?", answer="Qué é 🙂 患者\r\n- x", system="Be brief."
    ),
    question_and_answer(question="leading", answer="trailing"),
    question_and_answer(question="a\tb", answer="  two\n\n"),
]


def _messages(conversation: Conversation) -> list[dict[str, str]]:
    return [message._asdict() for message in conversation]


def _exported(opened: OpenedTokenizer, folder: Path) -> Any:
    from transformers import AutoTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    export_tokenizer(opened, folder, model_max_length=4096)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": opened.tokenizer.vocab_size}))
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(("base", "template"), KINDS)
def test_transformers_gives_the_ids_the_roles_and_the_ends_of_training(tmp_path: Path, base: str, template: str) -> None:
    opened = open_tokenizer(BASES[base](tmp_path / "base"), template=template)
    loaded = _exported(opened, tmp_path / "out")
    for example in EXAMPLES:
        documents = encode_documents([example], opened, control=False)
        ids, answer = documents.tokens.tolist(), (documents.roles == Role.ANSWER).astype(int).tolist()
        text = opened.template.text(example)
        assert loaded.apply_chat_template(_messages(example), tokenize=False) == text
        assert loaded(text).input_ids == ids, "something was put before or behind the text"
        told = loaded.apply_chat_template(_messages(example), return_dict=True, return_assistant_tokens_mask=True)
        assert told["input_ids"] == ids
        assert told["assistant_masks"] == answer
        prompt = loaded.apply_chat_template(_messages(example)[:-1], tokenize=False, add_generation_prompt=True)
        assert prompt == opened.template.text(example[:-1], add_generation_prompt=True)
    assert loaded.eos_token_id == opened.stop_id == end_tokens(opened)[0]
    assert opened.stop_id in encode_documents(EXAMPLES, opened, control=False).tokens
    assert loaded.pad_token_id == pad_id(opened) not in (None, opened.stop_id)
    assert loaded.pad_token_id < opened.tokenizer.vocab_size == len(loaded)


@pytest.mark.parametrize(("base", "template"), KINDS)
def test_several_turns_are_marked_and_read_as_without_marks(tmp_path: Path, base: str, template: str) -> None:
    opened = open_tokenizer(BASES[base](tmp_path / "base"), template=template)
    loaded = _exported(opened, tmp_path / "out")
    turns = [message for example in EXAMPLES[1:] for message in _messages(example)]
    plain = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["chat_template"]
    for messages, prompt in ((turns, False), (turns[:-1], True), (turns[:1], True)):
        text = loaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        assert text == loaded.apply_chat_template(messages, chat_template=plain, tokenize=False, add_generation_prompt=prompt)
    told = loaded.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
    marked = loaded.decode([id_ for id_, mask in zip(told["input_ids"], told["assistant_masks"], strict=True) if mask])
    assert marked.count(opened.template.stop_token) == 2
    assert "trailing" in marked
    assert "leading" not in marked


@pytest.mark.parametrize("base", BASES)
def test_the_chat_template_for_llama_cpp_has_no_tag_of_transformers(tmp_path: Path, base: str) -> None:
    from gguf.vocab import SpecialVocab

    opened = open_tokenizer(BASES[base](tmp_path / "base"))
    _exported(opened, tmp_path / "out")
    read = SpecialVocab(tmp_path / "out")
    assert read.chat_template == opened.template.jinja
    assert "generation %}" not in opened.template.jinja
    assert read.add_special_token == {"bos": False, "eos": False}
    assert (read.special_token_ids["eos"], read.special_token_ids["pad"]) == (opened.stop_id, pad_id(opened))


def test_llama_cpp_finds_the_added_tokens_of_a_sentence_piece_model(tmp_path: Path) -> None:
    from gguf.vocab import LlamaHfVocab, SentencePieceVocab

    opened = open_tokenizer(write_sentence_piece(tmp_path / "base"))
    _exported(opened, tmp_path / "out")
    added = dict(opened.tokenizer.added_tokens)
    assert SentencePieceVocab(tmp_path / "out").added_tokens_dict == added
    assert added["<|im_end|>"] == 32018
    table = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert {token["content"]: int(id_) for id_, token in table.items()} == dict(opened.tokenizer.special_ids)
    assert all(token["special"] for token in table.values())
    (tmp_path / "out" / "tokenizer.model").unlink()  # what a converter does that finds no such file
    vocabulary = LlamaHfVocab(tmp_path / "out")
    assert {token: id_ for token, id_ in vocabulary.added_tokens_dict.items() if id_ >= 32000} == added
    assert vocabulary.special_ids.issuperset(added.values()), "others are found in what people write, too"


def test_what_ends_an_answer_is_special_in_the_export(tmp_path: Path) -> None:
    opened = open_tokenizer(write_qwen(tmp_path / "base", template=(TEMPLATES / "nsp.jinja").read_text()), template="model")
    assert opened.template.stop_token == "</think>"
    assert opened.stop_id == opened.tokenizer.special_ids["</think>"]
    loaded = _exported(opened, tmp_path / "out")
    ids = encode_documents([EXAMPLES[1]], opened, control=False).tokens.tolist()
    assert loaded.eos_token_id == opened.stop_id == ids[-2]  # a new line follows
    assert loaded(opened.template.text(EXAMPLES[1])).input_ids == ids
    assert "</think>" not in loaded.decode(ids, skip_special_tokens=True)
    # a row that has the word does not end its answer
    text = encode_documents([question_and_answer(question="q", answer="a </think> b")], opened, control=False).tokens.tolist()
    assert text.count(opened.stop_id) == 2, "after the question and after the answer"


@pytest.mark.parametrize("base", ["llama-3", "qwen"])
def test_an_end_token_is_added_where_the_template_writes_none(tmp_path: Path, base: str) -> None:
    write = {"llama-3": write_llama_3, "qwen": write_qwen}[base]
    opened = open_tokenizer(write(tmp_path / "base", template=(TEMPLATES / "noeos.jinja").read_text()), template="model")
    [note] = opened.template.notes
    assert "writes no end token" in note
    loaded = _exported(opened, tmp_path / "out")
    for example in EXAMPLES:
        documents = encode_documents([example], opened, control=False)
        assert documents.tokens[-1] == opened.stop_id == loaded.eos_token_id
        assert documents.roles[-1] == Role.ANSWER
        text = opened.template.text(example)
        ids = documents.tokens.tolist()
        told = loaded.apply_chat_template(_messages(example), return_dict=True, return_assistant_tokens_mask=True)
        assert loaded(text).input_ids == told["input_ids"] == ids
        assert told["assistant_masks"] == (documents.roles == Role.ANSWER).astype(int).tolist()
        prompt = loaded.apply_chat_template(_messages(example)[:-1], tokenize=False, add_generation_prompt=True)
        assert text.startswith(prompt)
    two = [message for example in EXAMPLES[1:] for message in _messages(example)]
    for prompt, ends in ((two, 2), (two[:-1], 1)):
        text = loaded.apply_chat_template(prompt, tokenize=False, add_generation_prompt=len(prompt) % 2 == 1)
        assert text.count(loaded.eos_token) == ends
    again = open_tokenizer(tmp_path / "out", template="model").template
    assert again.notes == ()
    assert again.text(EXAMPLES[0]) == opened.template.text(EXAMPLES[0])


@pytest.mark.parametrize("base", ["llama-3", "qwen"])
def test_an_export_can_be_fine_tuned_and_exported_again(tmp_path: Path, base: str) -> None:
    opened = open_tokenizer(BASES[base](tmp_path / "base"), template="model")
    _exported(opened, tmp_path / "first")
    again = open_tokenizer(tmp_path / "first", template="model")
    assert again.template.stop_token == opened.template.stop_token
    _exported(again, tmp_path / "second")
    first, second = ((tmp_path / name / "chat_template.jinja").read_text() for name in ("first", "second"))
    assert first == second, "a template around a template around a template"
    before, after = (encode_documents(EXAMPLES, each, control=False) for each in (opened, again))
    assert before.tokens.tolist() == after.tokens.tolist()


def test_own_marks_are_those_of_training_unless_they_leave_out_the_end(tmp_path: Path) -> None:
    marked = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content + eos_token }}{% endgeneration %}"
    )
    marked += "{% else %}{{ '[' + m.content + ']' }}{% endif %}{% endfor %}"
    part = marked.replace("{% generation %}{{ m.content", "{{ m.content[:1] }}{% generation %}{{ m.content[1:]")
    endless = marked.replace(" + eos_token }}{% endgeneration %}", " }}{% endgeneration %}{{ eos_token }}")
    for number, template in enumerate((marked, part, endless)):
        folder = write_llama_3(tmp_path / str(number), template=template)
        opened = open_tokenizer(folder, template="model")
        assert chat_template(folder, {"chat_template": template}) == opened.template.jinja
        assert (opened.template.marked_jinja == template) == (template != endless)
        assert bool(opened.template.notes) == (template == endless)
        loaded = _exported(opened, tmp_path / f"out{number}")
        documents = encode_documents([EXAMPLES[0]], opened, control=False)
        told = loaded.apply_chat_template(_messages(EXAMPLES[0]), return_dict=True, return_assistant_tokens_mask=True)
        assert told["assistant_masks"] == (documents.roles == Role.ANSWER).astype(int).tolist()


def test_padding_is_not_what_ends_an_answer(tmp_path: Path) -> None:
    folder = write_qwen(tmp_path / "qwen")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"pad_token": "<|im_end|>"}))
    opened = open_tokenizer(folder, template="chatml")
    assert opened.tokenizer.token(pad_id(opened)) == "<|endoftext|>"
    llama = open_tokenizer(write_llama_3(tmp_path / "llama"), template="chatml")
    assert llama.tokenizer.token(pad_id(llama)) == "<|reserved_special_token_0|>"
