from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from importlib.resources import files
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def sentence_piece_model() -> Path:
    """A real model of 32,000 pieces with the special ids of Llama."""
    return Path(str(files("mistral_common") / "data" / "tokenizer.model.v1"))


@pytest.fixture(scope="session")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small byte-level tokenizer that knows <|im_end|> but not <|im_start|>, and adds <s> when it may."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    folder = tmp_path_factory.mktemp("hf_tokenizer")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(name, special=True) for name in ("<s>", "</s>", "<|im_end|>")],
        show_progress=False,
    )
    tokenizer.train_from_iterator(["question answer system user assistant the dose is 5 mg of aspirin"] * 9, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    chat = (
        "{{ bos_token }}{% for message in messages %}"
        "{% if message['role'] == 'assistant' %} {{ message['content'].strip() }}{{ eos_token }}"
        "{% else %}[{{ message['role'] }}] {{ message['content'] }}\n{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{% endif %}"
    )
    config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": chat}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


WriteRows = Callable[[Path, Iterable[object]], Path]


@pytest.fixture(scope="session")
def write_rows() -> WriteRows:
    """Write objects as JSON lines; a bytes object is written as it is."""

    def write(path: Path, rows: Iterable[object]) -> Path:
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        return path

    return write


@pytest.fixture
def rows() -> list[dict[str, str]]:
    texts = ["What is the dose of aspirin?", "Is 5 mg enough?\n\nMind the age.", "Qué fiebre? 🙂", "x"]
    return [
        {"prompt": text * (index % 3 + 1), "gold": f"Answer {index}", "sys": "Be brief."}
        for index, text in enumerate(texts * 5)
    ]
