"""What is exported must give transformers the ids and the text of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medsft.core.data.dataset.encode import encode_documents
from medsft.core.data.sources.conversation import Conversation, question_and_answer
from medsft.core.data.tokenizers.base import OpenedTokenizer
from medsft.core.data.tokenizers.export import export_tokenizer
from medsft.core.data.tokenizers.open import open_tokenizer

EXAMPLES = [
    question_and_answer(
        question="What is the dose of aspirin?\n\n 5 mg  or 6?", answer="Qué é 🙂 患者\r\n- x", system="Be brief."
    ),
    question_and_answer(question="  leading", answer="trailing  "),
    question_and_answer(question="a\tb", answer="▁underscore▁ H₂O <|im_x|> {{ y }}", system=""),
]


def _messages(conversation: Conversation) -> list[dict[str, str]]:
    return [message._asdict() for message in conversation]


def _exported(opened: OpenedTokenizer, folder: Path) -> Any:
    from transformers import AutoTokenizer

    export_tokenizer(opened, folder, model_max_length=4096)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    ("kind", "template"),  # a tokenizer.model alone has no chat template of its own
    [
        ("tokenizer.json", "meditron"),
        ("tokenizer.json", "chatml"),
        ("tokenizer.json", "model"),
        ("tokenizer.model", "meditron"),
        ("tokenizer.model", "chatml"),
    ],
)
def test_transformers_gives_the_ids_and_the_text_of_training(
    hf_folder: Path, sentence_piece_model: Path, tmp_path: Path, kind: str, template: str
) -> None:
    opened = open_tokenizer(hf_folder if kind == "tokenizer.json" else sentence_piece_model, template=template)
    loaded = _exported(opened, tmp_path)
    for example in EXAMPLES:
        messages = _messages(example)
        text = opened.template.text(example)
        ids = encode_documents([example], opened, control=False).tokens.tolist()
        assert loaded.apply_chat_template(messages, tokenize=False) == text
        assert loaded.apply_chat_template(messages, return_dict=False) == ids
        assert loaded(text, add_special_tokens=False).input_ids == ids
        prompt = loaded.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
        assert prompt == opened.template.text(example[:-1], add_generation_prompt=True)
    assert loaded.eos_token == opened.template.stop_token
    assert loaded.eos_token_id == opened.stop_id
    assert len(loaded) == opened.tokenizer.vocab_size
    assert loaded.model_max_length == 4096


def test_an_exported_tokenizer_is_read_back_the_same(hf_folder: Path, sentence_piece_model: Path, tmp_path: Path) -> None:
    for index, source in enumerate((hf_folder, sentence_piece_model)):
        opened = open_tokenizer(source)
        folder = tmp_path / str(index)
        folder.mkdir()
        export_tokenizer(opened, folder)
        again = open_tokenizer(folder)
        assert again.tokenizer.added_tokens == ()
        assert again.tokenizer.vocab_size == opened.tokenizer.vocab_size
        before, after = (encode_documents(EXAMPLES, each, control=False) for each in (opened, again))
        assert after.tokens.tolist() == before.tokens.tolist()
        assert open_tokenizer(folder, template="model").template.text(EXAMPLES[0]) == opened.template.text(EXAMPLES[0])


def test_tokens_listed_in_the_configuration_gain_the_added_ones(hf_folder: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    (source / "tokenizer.json").write_bytes((hf_folder / "tokenizer.json").read_bytes())
    config = {"added_tokens_decoder": {"0": {"content": "<s>", "special": True}}, "auto_map": {"x": "y.z"}}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    opened = open_tokenizer(source)
    export_tokenizer(opened, out)
    written = json.loads((out / "tokenizer_config.json").read_text())
    [(token, id_)] = opened.tokenizer.added_tokens
    assert written["added_tokens_decoder"][str(id_)]["content"] == token
    assert "auto_map" not in written
