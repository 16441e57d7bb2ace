"""`--compat megatron-llm` against a second computation: the original's formulas, over transformers' model, in plain torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from medsft.core.config.run_config import RunConfig, from_mapping
from medsft.core.data.dataset.dataset import open_tokenized
from medsft.core.engine.commands.export import export_run
from medsft.core.planning.plan import RunPlan
from medsft.core.run.rundir import RunDir
from medsft.core.workflow import check_against_existing, prepare, resume
from medsft.errors import ConfigError, MismatchError

pytestmark = pytest.mark.timeout(240)

ANSWER = 2
BASE_ROWS = tiny.SIZES["vocab_size"]


@dataclass(frozen=True)
class Case:
    """Flags of a run; the levels must not matter to the reference, but for the rows that tp pads to."""

    changes: dict[str, object]
    rows: int = 128
    """128 * tp, which holds the 86 tokens."""


CASES = {
    "validation-set": Case({}),
    "validation-set-dp2": Case({"nproc_per_node": 2}),
    "hidden-split": Case({"val": []}),
    "hidden-split-dp2": Case({"val": [], "nproc_per_node": 2}),
    "answers-cut-away": Case({"loss_mask": 0.0, "micro_batch": 1, "seq": 16}),
    "tp2": Case({"tp": 2}, rows=256),
    "pipeline-filled-up": Case({"pp": 2, "global_batch": 2}),
}


class Reference:
    """The original's training of one model, one document at a time."""

    def __init__(self, config: RunConfig, base: Path, rows: int) -> None:
        self.config = config
        self.model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        self._pad_tables(rows)
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self.model.parameters()]
        self.train = open_tokenized(config.tokenized_data_dir / config.run_name)
        self.order, self.val = self._order()

    def _pad_tables(self, rows: int) -> None:
        for module in (self.model.model.embed_tokens, self.model.lm_head):
            weight = module.weight.detach()
            module.weight = torch.nn.Parameter(torch.cat([weight, weight[-1:].expand(rows - BASE_ROWS, -1)]).clone())

    def _order(self):
        """Documents in the order of training, and (set, documents) of the validation."""
        random = np.random.RandomState(self.config.seed)
        count = self.train.num_documents
        if self.config.val:
            validation = open_tokenized(self.config.tokenized_data_dir / f"{self.config.run_name}-val")
            chosen, val = np.arange(count), (validation, np.arange(validation.num_documents))
        else:
            shuffled = random.permutation(count)
            assert count == 20, "of 20 the split makes 19.38, 0.6 and 0.02, rounded"
            chosen, val = shuffled[:19], (self.train, shuffled[19:])
        return list(chain.from_iterable(random.permutation(chosen) for _ in range(3))), val

    def document(self, data, number):
        """Inputs, labels and the weight of each label."""
        cut = self.config.seq + 1
        tokens = torch.from_numpy(data.tokens(int(number))[:cut].astype(np.int64))
        roles = data.roles(int(number))[:cut].astype(np.int64)
        weights = np.where(roles[1:] == ANSWER, 1.0, self.config.loss_mask)
        return tokens[None, :-1], tokens[1:], torch.tensor(weights, dtype=torch.float32)

    def nll(self, inputs, labels):
        logits = self.model(input_ids=inputs, use_cache=False).logits[0]
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none")

    def mean(self, documents):
        """The loss of one micro-batch: sum(w * nll) / sum(w). Without any weight the original has NaN; here it is 0."""
        total, weight = torch.zeros(()), 0.0
        for document in documents:
            inputs, labels, weights = self.document(self.train, document)
            total, weight = total + (weights * self.nll(inputs, labels)).sum(), weight + float(weights.sum())
        return total / weight if weight else total * 0

    def rate(self, update: int, updates: int) -> float:
        """From samples, as the original counts: those of the updates before this one, so that the first has none."""
        n, all_samples = update * self.config.global_batch, updates * self.config.global_batch
        warmup = self.config.warmup_fraction * all_samples
        if n <= warmup:
            return self.config.lr * n / warmup
        cosine = 1 + math.cos(math.pi * (n - warmup) / (all_samples - warmup))
        return self.config.min_lr + 0.5 * (self.config.lr - self.config.min_lr) * cosine

    def update(self, k: int, updates: int) -> tuple[float, float]:
        """Loss and gradient norm of update k, which is applied."""
        batch = self.order[k * self.config.global_batch : (k + 1) * self.config.global_batch]
        size = self.config.micro_batch
        parts = [batch[i : i + size] for i in range(0, len(batch), size)]
        losses = [self.mean(part) / len(parts) for part in parts]
        self.model.zero_grad()
        for loss in losses:
            loss.backward()
        norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in self.model.parameters()))
        self.adam(min(1.0, self.config.clip_grad / (norm + 1e-6)), k + 1, self.rate(k, updates))
        return sum(loss.item() for loss in losses), norm

    @torch.no_grad()
    def adam(self, scale: float, step: int, lr: float) -> None:
        b1, b2 = self.config.adam_beta1, self.config.adam_beta2
        for p, (first, second) in zip(self.model.parameters(), self.moments, strict=True):
            gradient = p.grad * scale
            first.mul_(b1).add_(gradient, alpha=1 - b1)
            second.mul_(b2).add_(gradient.square(), alpha=1 - b2)
            direction = first / (1 - b1**step) / ((second / (1 - b2**step)).sqrt() + self.config.adam_eps)
            if p.ndim > 1:
                direction += self.config.weight_decay * p
            p.sub_(lr * direction)

    @torch.no_grad()
    def validate(self) -> float:
        """Mean nll of the answers' tokens over all rows of the table."""
        data, documents = self.val
        total, count = 0.0, 0
        for document in documents:
            inputs, labels, weights = self.document(data, document)
            total, count = total + float(self.nll(inputs, labels)[weights == 1].sum()), count + int((weights == 1).sum())
        return total / count


def compat_plan(folder: Path, **changes: object) -> RunPlan:
    config, settings = tiny.project(folder, rows=20)
    common = {"compat": "megatron-llm", "loss_mask": 0.25, "seq": 40, "truncate": "keep", "iters": 4, "eval_interval": 9}
    rates = {"lr": 2e-3, "min_lr": 2e-4}  # larger ones make rounding grow from update to update
    return prepare(from_mapping({**common, **rates, **changes}, base=config), settings)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_training_is_that_of_the_formulas(tmp_path: Path, case: Case) -> None:
    plan = compat_plan(tmp_path, **case.changes)
    assert plan.softmax_rows == case.rows
    events = tiny.train(plan)

    reference = Reference(plan.config, tmp_path / "base", case.rows)
    expected = [(*reference.update(k, 4), reference.rate(k, 4)) for k in range(4)]
    for found, wanted in zip(tiny.series(events, "step", "loss", "grad_norm", "lr"), expected, strict=True):
        assert found == pytest.approx(wanted, rel=2e-5, abs=1e-9)
    assert tiny.series(events, "eval", "loss") == [pytest.approx((reference.validate(),), rel=2e-5)]

    taken = export_run(RunDir(Path(plan.run_dir)), tmp_path / "out")
    exported = load_file(Path(taken.folder) / "model.safetensors")
    for name, weight in reference.model.state_dict().items():
        torch.testing.assert_close(exported[name], weight[: len(exported[name])], rtol=0, atol=2e-4)
    assert len(exported["lm_head.weight"]) == plan.base.model.vocab_size == 86


def test_some_micro_batches_of_that_case_have_no_weight(tmp_path: Path) -> None:
    """Or the case above would show nothing."""
    plan = compat_plan(tmp_path, **CASES["answers-cut-away"].changes)
    reference = Reference(plan.config, tmp_path / "base", 128)
    weights = [float(reference.document(reference.train, document)[2].sum()) for document in reference.order[:32]]
    assert 0 < weights.count(0) < 16


@pytest.mark.parametrize(
    ("changes", "flag", "hint"),
    [
        ({"micro_batch": 3}, "--micro_batch", "1, 2, 4, 8"),
        ({"nproc_per_node": 3}, "--global_batch", "6 and 9"),
    ],
)
def test_blocks_must_be_whole(tmp_path: Path, changes: dict[str, object], flag: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compat_plan(tmp_path, **changes)
    assert [problem.where for problem in caught.value.problems] == [flag]
    assert hint in caught.value.problems[0].hint


def test_a_resume_that_changes_the_loss_is_refused(tmp_path: Path) -> None:
    """Rows of padding are in the softmax, and 86 tokens are padded to 128 at tp 1 and to 256 at tp 2."""
    folder = tiny.create(compat_plan(tmp_path))
    assert resume(folder, pp=2).layout.pp == 2
    with pytest.raises(MismatchError, match=r"rows in the softmax \(--tp, .*: was 128, now 256"):
        resume(folder, tp=2)
    with pytest.raises(MismatchError, match=r"\(--micro_batch, .*: was 2, now 4"):
        check_against_existing(compat_plan(tmp_path / "again", save_checkpoint_dir=tmp_path / "runs", micro_batch=4))


def test_the_hidden_split_is_told(tmp_path: Path) -> None:
    plan = compat_plan(tmp_path, val=[], iters=None, epochs=8.2)
    assert (plan.train.documents, plan.val and plan.val.documents) == (19, 1)
    assert plan.num_iterations == 30, "the original counts 8.2 * 20 / 8 iterations, not 8.2 * 19 / 8, and rounds up to tens"
    assert any("1 documents are not trained on, 1 of them to validate on" in line for line in plan.warnings)
