"""The loss of a run is transformers' own on the same documents: same weights, same tokens, same mean over answer tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

from medsft.core.data.dataset import open_tokenized
from medsft.core.data.template import Role
from medsft.core.planning.plan import RunPlan
from medsft.core.planning.selection import open_selection

pytestmark = pytest.mark.timeout(120)


def reference_loss(plan: RunPlan, iteration: int, *, loss_mask: float) -> float:
    """sum(weight * nll) / sum(weight) over the documents of one iteration, each alone in a batch of transformers."""
    model = AutoModelForCausalLM.from_pretrained(plan.base.path, dtype=torch.float32).eval()
    model.resize_token_embeddings(plan.base.model.vocab_size, mean_resizing=False)
    with torch.no_grad():
        for table in {id(t): t for t in (model.get_input_embeddings(), model.get_output_embeddings())}.values():
            table.weight[plan.base.base_vocab_size :] = table.weight[: plan.base.base_vocab_size].mean(0)
    train, _ = open_selection(plan)
    data = open_tokenized(Path(plan.train.folder))
    total, weights = 0.0, 0.0
    for number in train.order.batch(iteration):
        document = int(train.indices[number])
        tokens = torch.tensor(data.tokens(document).astype("int64"))
        answer = torch.tensor(data.roles(document)[1:] == Role.ANSWER)
        weight = torch.where(answer, 1.0, loss_mask)
        with torch.no_grad():
            logits = model(input_ids=tokens[None, :-1]).logits[0]
        nll = torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="none")
        total += float((weight * nll).sum())
        weights += float(weight.sum())
    return total / weights


@pytest.mark.parametrize("loss_mask", [0.0, 0.3, 1.0])
def test_first_loss(tmp_path, loss_mask):
    config, settings = tiny.project(tmp_path)
    plan = tiny.plan_of(config, settings, iters=1, loss_mask=loss_mask)
    assert plan.base.new_tokens
    ((loss,),) = tiny.series(tiny.train(plan), "step", "loss")
    assert loss == pytest.approx(reference_loss(plan, 0, loss_mask=loss_mask), abs=1e-5)
