"""Answers of a model are asked for with the ids of training, at any turn of a conversation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_tokenizers import write_llama_3

from medsft.core.data.dataset.encode import encode_documents
from medsft.core.data.sources.conversation import question_and_answer
from medsft.core.data.tokenizers.end_tokens import end_tokens
from medsft.core.data.tokenizers.open import open_tokenizer
from medsft.core.data.tokenizers.template import Role
from medsft.core.engine.commands.generate import answer_loss, answers

ONE = question_and_answer("the dose?", "5 mg", "Be brief.")
TWO = (*ONE, *question_and_answer("and for a child, then?", "none at all"))


@pytest.mark.parametrize("template", ["chatml", "model"])
def test_the_answer_follows_the_ids_before_it(tmp_path: Path, template: str) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    opened = open_tokenizer(write_llama_3(tmp_path), template=template)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=opened.tokenizer.vocab_size, **sizes)).eval()
    found = list(answers(model, [TWO, ONE], opened, max_new_tokens=5))
    for conversation, answer in zip((TWO, ONE), found, strict=True):
        documents = encode_documents([conversation], opened, control=False)
        starts = [
            index
            for index in range(1, len(documents.roles))
            if documents.roles[index] == Role.ANSWER != documents.roles[index - 1]
        ]
        ids = documents.tokens[: starts[-1]].tolist()
        if template == "chatml":  # the answer's segment begins with the words that open it
            ids += opened.tokenizer.encode(opened.template.render((), add_generation_prompt=True))[0].tolist()
        begun = len(ids)
        for _ in range(5):
            with torch.inference_mode():
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        generated = ids[begun:]
        stop = next((n for n, id_ in enumerate(generated) if id_ in end_tokens(opened)), len(generated))
        assert answer == opened.tokenizer.decode(generated[:stop]).strip()
    _, tokens = answer_loss(model, [TWO, ONE], opened)
    roles = encode_documents([TWO, ONE], opened, control=False).roles
    assert tokens == int((roles == Role.ANSWER).sum())
