"""The loss of a run is transformers' own on the same documents: same weights, same tokens, same mean over answer tokens."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

from medsft.core.data.tokenizers.template import Role
from medsft.core.planning.plan import RunPlan
from medsft.core.planning.selection import Selection, open_selection

pytestmark = pytest.mark.timeout(120)


def reference_loss(plan: RunPlan, chosen: Selection, numbers: Iterable[int], *, loss_mask: float) -> float:
    """sum(weight * nll) / sum(weight) over some documents of a set, each alone in a batch of transformers."""
    model = AutoModelForCausalLM.from_pretrained(plan.base.path, dtype=torch.float32).eval()
    model.resize_token_embeddings(plan.base.model.vocab_size, mean_resizing=False)
    with torch.no_grad():
        for table in {id(t): t for t in (model.get_input_embeddings(), model.get_output_embeddings())}.values():
            table.weight[plan.base.base_vocab_size :] = table.weight[: plan.base.base_vocab_size].mean(0)
    data = chosen.data
    total, weights = 0.0, 0.0
    for number in numbers:
        document = int(chosen.indices[number])
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
    events = tiny.train(plan)
    train, val = open_selection(plan)
    ((loss,),) = tiny.series(events, "step", "loss")
    assert loss == pytest.approx(reference_loss(plan, train, train.order.batch(0), loss_mask=loss_mask), abs=1e-5)
    assert val is not None
    (_, before), *_ = tiny.series(events, "eval", "iteration", "loss")
    assert before == pytest.approx(reference_loss(plan, val, range(len(val.indices)), loss_mask=0.0), abs=1e-5)
