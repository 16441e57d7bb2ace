"""The loss of a run is transformers' own on the same documents: same weights, same tokens, same mean over answer tokens."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable

import pytest
import tiny
import torch
from role_sets import write_conversations, write_set
from transformers import AutoModelForCausalLM

from medsft.core.data.dataset.dataset import TokenizedDataset, open_tokenized
from medsft.core.data.tokenizers.template import Role
from medsft.core.planning.plan import RunPlan
from medsft.core.planning.selection import Split, open_splits
from medsft.core.planning.sets import training_folder, validation_folder

pytestmark = pytest.mark.timeout(120)


def answer_labels(roles: list[int], turns: str) -> list[bool]:
    """Tell which tokens but the first are trained on as answers."""
    if turns == "last":
        text = "".join("a" if role == Role.ANSWER else "-" for role in roles)
        last = re.search(r"a+(?=[^a]*$)", text)
        assert last or Role.TEXT in roles
        return [role == Role.TEXT or (last is not None and place in range(*last.span())) for place, role in enumerate(roles)][
            1:
        ]
    return [role in (Role.ANSWER, Role.TEXT) for role in roles[1:]]


def reference_loss(plan: RunPlan, chosen: Split, numbers: Iterable[int], *, loss_mask: float) -> float:
    """sum(weight * nll) / sum(weight) over some documents of a set, each alone in a batch of transformers."""
    model = AutoModelForCausalLM.from_pretrained(plan.base.path, dtype=torch.float32).eval()
    model.resize_token_embeddings(plan.base.model.vocab_size, mean_resizing=False)
    with torch.no_grad():
        for table in {id(t): t for t in (model.get_input_embeddings(), model.get_output_embeddings())}.values():
            table.weight[plan.base.base_vocab_size :] = table.weight[: plan.base.base_vocab_size].mean(0)
    data = chosen.data
    total, weights = 0.0, 0.0
    for number in numbers:
        document = int(chosen.subset.indices[number])
        start, length = int(chosen.subset.starts[number]), int(chosen.subset.lengths[number])
        tokens = torch.tensor(data.tokens(document)[start : start + length].astype("int64"))
        answer = torch.tensor(answer_labels(data.roles(document)[start : start + length].tolist(), plan.config.turns))
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
    train, val = open_splits(plan)
    ((loss,),) = tiny.series(events, "step", "loss")
    assert loss == pytest.approx(reference_loss(plan, train, train.order.batch(0), loss_mask=loss_mask), abs=1e-5)
    assert val is not None
    (_, before), *_ = tiny.series(events, "eval", "iteration", "loss")
    assert before == pytest.approx(reference_loss(plan, val, range(len(val.subset.indices)), loss_mask=0.0), abs=1e-5)


def with_two_answers(made: TokenizedDataset) -> None:
    """Make the set again with a second answer in each document: a token of its question."""
    tokens = [made.tokens(number).tolist() for number in range(made.num_documents)]
    roles = [made.roles(number).tolist() for number in range(made.num_documents)]
    for document in roles:
        document[1] = Role.ANSWER
        assert document[2] == Role.QUESTION
    stop, vocab = made.manifest.stop_id, made.manifest.vocab_size
    shutil.rmtree(made.folder)
    again = write_set(made.folder, tokens, roles, stop_id=stop, vocab_size=vocab)
    assert len(again.answers.first) == 2 * again.num_documents


@pytest.mark.parametrize("loss_mask", [0.0, 0.3])
def test_documents_with_two_answers(tmp_path, loss_mask):
    """Nothing but the roles says what is trained on: weights of the loss, counts and validation follow both answers."""
    config, settings = tiny.project(tmp_path)
    tiny.plan_of(config, settings)
    for folder in (training_folder(config), validation_folder(config)):
        with_two_answers(open_tokenized(folder))
    plan = tiny.plan_of(config, settings, data=(), val=(), iters=1, loss_mask=loss_mask)
    events = tiny.train(plan)
    train, val = open_splits(plan)
    ((loss, supervised),) = tiny.series(events, "step", "loss", "supervised_tokens")
    batch = train.order.batch(0)
    assert loss == pytest.approx(reference_loss(plan, train, batch, loss_mask=loss_mask), abs=1e-5)
    assert supervised == train.subset.answer_labels[batch].sum()
    assert plan.train.supervised_tokens == train.data.tokens_by_role[Role.ANSWER]
    assert val is not None
    (_, before, tokens), *_ = tiny.series(events, "eval", "iteration", "loss", "tokens")
    assert before == pytest.approx(reference_loss(plan, val, range(len(val.subset)), loss_mask=0.0), abs=1e-5)
    assert tokens == val.data.tokens_by_role[Role.ANSWER]


CASES = [
    *((turns, loss_mask, (1, 1, 1)) for turns, loss_mask in [("last", 0.0), ("last", 0.3), ("all", 0.0)]),
    *(pytest.param("last", 0.3, layout, marks=pytest.mark.distributed) for layout in [(1, 2, 1), (1, 2, 2), (2, 2, 1)]),
]


@pytest.mark.parametrize(("turns", "loss_mask", "layout"), CASES)
def test_conversations_and_texts_in_every_layout(tmp_path, turns, loss_mask, layout):
    """Several turns, cut by --seq, and texts in pieces: packed and dealt to ranks they give the loss of each one alone."""
    config, settings = tiny.project(tmp_path)
    tiny.plan_of(config, settings)
    for seed, folder in enumerate((training_folder(config), validation_folder(config))):
        made = open_tokenized(folder).manifest
        shutil.rmtree(folder)
        assert made.stop_id is not None
        write_conversations(folder, documents=24 - 9 * seed, stop_id=made.stop_id, vocab_size=made.vocab_size, seed=seed)
    pp, dp, tp = layout
    levels = {"pp": pp, "tp": tp, "nproc_per_node": pp * dp * tp}
    changes = {"iters": 1, "loss_mask": loss_mask, "turns": turns, "seq": 23, "truncate": "keep"}
    plan = tiny.plan_of(config, settings, data=(), val=(), **changes, **levels)
    train, val = open_splits(plan)
    assert train.subset.starts.any()
    assert (train.data.lengths[train.subset.indices] > train.subset.lengths).sum() > 3
    events = tiny.train(plan)
    ((loss, supervised),) = tiny.series(events, "step", "loss", "supervised_tokens")
    batch = train.order.batch(0)
    assert loss == pytest.approx(reference_loss(plan, train, batch, loss_mask=loss_mask), abs=2e-5)
    assert supervised == train.subset.answer_labels[batch].sum()
    assert val is not None
    (_, before, tokens), *_ = tiny.series(events, "eval", "iteration", "loss", "tokens")
    assert before == pytest.approx(reference_loss(plan, val, range(len(val.subset)), loss_mask=0.0), abs=2e-5)
    assert tokens == plan.val.supervised_tokens == val.subset.answer_labels.sum()
