"""Small tokenizers with the features of those that people have: SentencePiece, Llama 3's, Qwen's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

LLAMA_3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + "
    "'<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
QWEN = """\
{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def write_sentence_piece(folder: Path) -> Path:
    """A ``tokenizer.model`` alone, as Megatron-LLM's converter leaves it: Llama's 32,000 pieces, no file beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(str(files("mistral_common") / "data" / "tokenizer.model.v1"), folder / "tokenizer.model")
    return folder


def write_llama_3(folder: Path, *, template: str | None = LLAMA_3) -> Path:
    """Bytes, and a post-processor that puts <|begin_of_text|> before every text. It names no padding."""
    names: tuple[str, ...] = ("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>")
    names += ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    config: dict[str, Any] = {
        "added_tokens_decoder": {},
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|end_of_text|>",
        "model_input_names": ["input_ids", "attention_mask"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    return _write_bytes(folder, names, (), config, template, bos="<|begin_of_text|>")


def write_qwen(folder: Path, *, template: str | None = QWEN) -> Path:
    """Bytes; nothing before a text; <think> and </think> are added tokens that control nothing."""
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    config: dict[str, Any] = {
        "add_prefix_space": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
    }
    return _write_bytes(folder, names, ("<think>", "</think>"), config, template, bos=None)


def _write_bytes(
    folder: Path,
    special: tuple[str, ...],
    added: tuple[str, ...],
    config: dict[str, Any],
    template: str | None,
    *,
    bos: str | None,
) -> Path:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["question answer system user assistant the dose is 5 mg of aspirin"] * 9, trainer)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in added])
    trimming = processors.ByteLevel(trim_offsets=True)
    if bos is None:
        tokenizer.post_processor = trimming
    else:
        before = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))])
        tokenizer.post_processor = processors.Sequence([trimming, before])
    tokenizer.save(str(folder / "tokenizer.json"))
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


BASES: dict[str, Callable[[Path], Path]] = {
    "sentence-piece": write_sentence_piece,
    "llama-3": write_llama_3,
    "qwen": write_qwen,
}
"""What writes a tokenizer folder, by the kind of base model that has one."""
KINDS = [
    (base, template)
    for base in BASES
    for template in ("meditron", "chatml", "model")
    if (base, template) != ("sentence-piece", "model")  # a tokenizer.model alone has no chat template
]
"""Each base model with each template that it can be trained with."""
