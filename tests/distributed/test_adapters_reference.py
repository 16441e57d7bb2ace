"""An adapter's training next to plain torch, and to PEFT where it is installed: same weights, A, B, rows and documents."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest
import tiny
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from medsft.core.config.lora import TARGETS
from medsft.core.data.tokenizers.template import Role
from medsft.core.engine.nn.adapters import initial_factor
from medsft.core.planning.plan import RunPlan
from medsft.core.planning.schedule import learning_rate
from medsft.core.planning.selection import Split, open_splits

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(240)]

ITERATIONS = 20


class WithAdapter(nn.Module):
    """A linear layer with an adapter, as the formula has it."""

    def __init__(self, base: nn.Linear, a: Tensor, b: Tensor, scaling: float) -> None:
        super().__init__()
        self.base, self.scaling = base, scaling
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scaling * (x @ self.a.T) @ self.b.T


def by_hand(model: nn.Module, plan: RunPlan) -> list[nn.Parameter]:
    """Put adapters into a model of transformers and return what is trained of them."""
    lora, added = plan.config.lora, []
    assert lora is not None
    for name, module in [(n, m) for n, m in model.named_modules() if n.rpartition(".")[2] in lora.targets]:
        shapes = (lora.rank, module.in_features), (module.out_features, lora.rank)
        a, b = (initial_factor(f"{name}.lora_{f}.weight", s, plan.config.seed) for f, s in zip("AB", shapes, strict=True))
        owner, _, leaf = name.rpartition(".")
        layer = WithAdapter(module, a, b, lora.scaling)
        setattr(model.get_submodule(owner), leaf, layer)
        added += [layer.a, layer.b]
    return added


def by_peft(model: nn.Module, plan: RunPlan) -> list[nn.Parameter]:
    """Do the same with PEFT."""
    import peft

    lora = plan.config.lora
    assert lora is not None
    config = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets), lora_dropout=0.0, use_rslora=lora.rslora
    )
    peft.inject_adapter_in_model(config, model)
    added = []
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            ours = name.replace(".default", "").replace(".base_layer", "")
            parameter.data.copy_(initial_factor(ours, tuple(parameter.shape), plan.config.seed))
            added.append(parameter)
    return added


def documents(split: Split, iteration: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield tokens, and which labels are an answer's, of each document of an iteration."""
    for number in split.order.batch(iteration):
        document = int(split.subset.indices[number])
        part = slice(int(split.subset.starts[number]), int(split.subset.starts[number] + split.subset.lengths[number]))
        tokens = torch.tensor(split.data.tokens(document)[part].astype("int64"))
        yield tokens, torch.tensor((split.data.roles(document)[part] == Role.ANSWER)[1:])


def reference(plan: RunPlan, attach) -> list[tuple[float, float]]:
    """Loss and gradient norm of each iteration, computed by transformers and torch's AdamW."""
    model = AutoModelForCausalLM.from_pretrained(plan.base.path, dtype=torch.float32)
    old, size = plan.base.base_vocab_size, plan.base.model.vocab_size
    model.resize_token_embeddings(size, mean_resizing=False)
    tables = list({id(t.weight): t.weight for t in (model.get_input_embeddings(), model.get_output_embeddings())}.values())
    with torch.no_grad():
        for table in tables:
            table[old:] = table[:old].mean(0)
    model.requires_grad_(False)
    trained = [*attach(model, plan), *(table.requires_grad_() for table in tables)]
    config = plan.config
    optimizer = torch.optim.AdamW(
        trained,
        lr=config.lr,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_eps,
        weight_decay=config.weight_decay,
    )
    split, _ = open_splits(plan)
    figures = []
    for iteration in range(plan.num_iterations):
        parts = list(documents(split, iteration))
        weight, total = sum(int(answer.sum()) for _, answer in parts), 0.0
        for tokens, answer in parts:
            logits = model(input_ids=tokens[None, :-1]).logits[0]
            nll = torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="none")
            loss = (nll * answer).sum() / weight
            loss.backward()
            total += float(loss.detach())
        for table in tables:
            table.grad[:old] = 0  # these rows stay as they are: without a gradient, AdamW without decay moves nothing
        norm = float(torch.nn.utils.clip_grad_norm_(trained, config.clip_grad))
        optimizer.param_groups[0]["lr"] = learning_rate(config, iteration + 1, plan.num_iterations)
        optimizer.step()
        optimizer.zero_grad()
        figures.append((total, norm))
    return figures


@pytest.mark.parametrize("way", ["hand", "peft"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_twenty_iterations(tmp_path, way, tied):
    if way == "peft" and importlib.util.find_spec("peft") is None:
        pytest.skip("PEFT is not installed")
    config, settings = tiny.project(tmp_path, tie_word_embeddings=tied)
    options = {"adapter": "lora", "lora_rank": 4, "lora_alpha": 12, "rslora": tied, "weight_decay": 0.0}
    # At larger rates the loss goes up and down, and what was rounding becomes a thousandth in 20 iterations.
    plan = tiny.plan_of(config, settings, iters=ITERATIONS, lr=3e-3, min_lr=3e-3, **options)
    assert plan.config.lora is not None
    assert plan.config.lora.targets == TARGETS
    found = tiny.series(tiny.train(plan), "step", "loss", "grad_norm")
    expected = reference(plan, by_hand if way == "hand" else by_peft)
    assert found[0] == pytest.approx(expected[0], abs=1e-5)
    assert found[-1][0] < found[0][0] - 0.1
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-5, rel=1e-5)
