"""Answers questions with a model, and measures its loss on given answers.

    python -m medsft.core.engine.commands.generate --model FOLDER --data FILE.jsonl --template T
        --out RESULT.json [--max_new_tokens N]

It uses transformers on the Hugging Face folder, so it also shows that the folder works without medsft.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medsft.core.config.row_options import USED_BY
from medsft.core.data.dataset.answers import supervised
from medsft.core.data.dataset.encode import encode_documents, encode_prompt
from medsft.core.data.sources.conversation import Conversation, up_to_answer
from medsft.core.data.sources.read import read_conversations
from medsft.core.data.sources.recognize import RowOptions, recognize
from medsft.core.data.tokenizers.base import OpenedTokenizer
from medsft.core.data.tokenizers.end_tokens import end_tokens
from medsft.core.data.tokenizers.open import open_tokenizer
from medsft.core.engine.commands.entry_point import run_process

_PROMPTS_AT_ONCE = 48


def answer_loss(model: Any, conversations: Sequence[Conversation], opened: OpenedTokenizer) -> tuple[float, int]:
    """Return (mean -log p over the answers' tokens in nats, number of these tokens)."""
    documents = encode_documents(conversations, opened, control=False)
    total, count, start = 0.0, 0, 0
    with torch.inference_mode():
        for size in documents.sizes:
            tokens = torch.from_numpy(documents.tokens[start : start + size].astype(np.int64))
            answer = torch.from_numpy(supervised(documents.roles[start + 1 : start + size]))
            start += int(size)
            # Only the rows before answer tokens are projected: the vocabulary is most of a small model's work.
            hidden = model.model(input_ids=tokens[None, :-1]).last_hidden_state[0][answer]
            nll = torch.nn.functional.cross_entropy(model.lm_head(hidden).float(), tokens[1:][answer], reduction="sum")
            total += float(nll)
            count += int(answer.sum())
    return total / max(1, count), count


def answers(
    model: Any, conversations: Sequence[Conversation], opened: OpenedTokenizer, *, max_new_tokens: int
) -> Iterator[str]:
    """Yield the greedy answer in the place of each conversation's last message, without the end token and what follows it."""
    stops = end_tokens(opened)
    prompts = [encode_prompt(conversation[:-1], opened) for conversation in conversations]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    texts: dict[int, str] = {}
    for start in range(0, len(order), _PROMPTS_AT_ONCE):
        numbers = order[start : start + _PROMPTS_AT_ONCE]
        generated = _generate(model, [prompts[i] for i in numbers], stops, max_new_tokens)
        texts |= {i: opened.tokenizer.decode(ids).strip() for i, ids in zip(numbers, generated, strict=True)}
    yield from (texts[i] for i in range(len(prompts)))


def _generate(model: Any, prompts: list[list[int]], stops: list[int], max_new_tokens: int) -> list[list[int]]:
    longest = max(map(len, prompts))
    ids = torch.tensor([[stops[0]] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with torch.inference_mode():
        out: Tensor = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=stops,
            pad_token_id=stops[0],
        )
    rows = out[:, longest:].tolist()
    return [row[: next((n for n, token in enumerate(row) if token in stops), len(row))] for row in rows]


def main(arguments: list[str]) -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(prog="generate")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--template", default="meditron")
    parser.add_argument("--format", default="auto")
    for name in USED_BY:
        parser.add_argument(f"--{name}", type=int if name == "first_option" else str)
    parser.add_argument("--max_new_tokens", type=int, default=24)
    options = parser.parse_args(arguments)

    from transformers import AutoModelForCausalLM

    opened = open_tokenizer(options.model, template=options.template)
    # On a CPU fp32 answers several times faster than bf16, whose small matrix products are not made for it.
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    if opened.tokenizer.vocab_size > model.config.vocab_size:
        model.resize_token_embeddings(opened.tokenizer.vocab_size)
    given = RowOptions.of(options.format, {name: getattr(options, name) for name in USED_BY})
    rows = recognize([options.data], given).rows
    conversations = [up_to_answer(conversation) for conversation in read_conversations([options.data], rows)]
    loss, tokens = answer_loss(model, conversations, opened)
    found = list(answers(model, conversations, opened, max_new_tokens=options.max_new_tokens))
    options.out.write_text(json.dumps({"loss": loss, "tokens": tokens, "answers": found}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run_process(main))
