"""A model that is asked: where its weights and its tokenizer are, and the template that it is prompted with. No torch.

RUN folder       its finished model, else the checkpoint of that, else its latest; asked with the run's own template
adapter folder   the base model with the adapter
other folders    Hugging Face, Megatron-LLM, torch.distributed.checkpoint; a .gguf file
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from medsft.core.data.tokenizers.base import OpenedTokenizer
from medsft.core.data.tokenizers.end_tokens import end_tokens, other_ends
from medsft.core.data.tokenizers.open import no_tokenizer_beside, open_tokenizer
from medsft.core.files import sizes_differ
from medsft.core.models import run_folder
from medsft.core.models.adapter_base import adapter_with_base
from medsft.core.models.adapter_folder import is_adapter
from medsft.core.models.config import named_end_tokens
from medsft.core.models.inspect import inspect_base
from medsft.core.planning.base import doubts_about_base, sampled_fingerprint
from medsft.core.planning.plan import RunPlan
from medsft.core.run.best import end_of_training
from medsft.core.run.exports import finished_models
from medsft.core.run.integrity import EXPORT_MANIFEST, read_export
from medsft.core.run.launch import load_plan
from medsft.core.run.rundir import RunDir
from medsft.errors import ConfigError, DataError, MedsftError, MismatchError, Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """What an engine process needs in order to load a model, and what prompts for it are made with."""

    name: str
    """For people."""
    weights: Path
    """Folder or file, as `inspect_base` takes it."""
    iteration: int | None = None
    """Which of several in `weights`."""
    adapter: Path | None = None
    """Folder of an adapter that is merged into these weights."""
    begins: Path | None = None
    """The run, or the model of one, whose base model this is: it answers as the run begins with it, and with `adapter`."""
    tokens: int
    """Rows of the tables that belong to tokens: prompts with ids behind the model's own rows make it as long as this."""
    tokenizer: Path
    template: str
    template_date: str = ""
    ends: tuple[int, ...]
    """Ids at which an answer ends."""
    context: int
    """Tokens of prompt and answer together that the model is made for."""
    before_text: tuple[int, ...] = ()
    """Ids that its tokenizer puts before a plain text, as a program that knows no template asks it."""
    notes: tuple[str, ...] = ()
    """What was decided, for people."""

    def open_tokenizer(self) -> OpenedTokenizer:
        """Open its tokenizer and template. Raises `DataError`."""
        return open_for_prompts(self.tokenizer, self.template, self.template_date)

    def identity(self) -> str:
        """Return what tells it from another model, with a cheap hash of the weights."""
        of_run = self.iteration is not None and run_folder.is_run(self.weights)
        weights = run_folder.checkpoint_path(self.weights, self.iteration or 0) if of_run else self.weights
        adapter = sampled_fingerprint(self.adapter) if self.adapter else ""
        parts = sampled_fingerprint(weights), adapter, self.iteration, self.begins is not None, self.tokens
        return "-".join(map(str, parts))

    def to_json(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        paths = {name: str(path) for name, path in asdict(self).items() if isinstance(path, Path)}
        return {**asdict(self), **paths}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> ModelSource:
        """Return what `to_json` was called on."""
        paths = {name: Path(raw[name]) for name in ("weights", "tokenizer", "adapter", "begins") if raw[name] is not None}
        lists = {name: tuple(raw[name]) for name in ("ends", "before_text", "notes")}
        return cls(**{**raw, **paths, **lists})


def find_model(path: Path, *, iteration: int | None = None, template: str | None = None) -> ModelSource:
    """Say how the model at `path` is loaded and prompted.

    `iteration` picks a checkpoint of a run or of a folder. `template` is for a model that is no run; by default its own.

    Raises `MismatchError` as `inspect_base` does, `DataError` for its tokenizer.
    """
    if run_folder.is_run(path):
        return _of_run(path, iteration)
    if is_adapter(path):
        return _of_adapter(path, template)
    base = inspect_base(path, iteration)
    if base.config is None:
        raise MismatchError(f"{path}: cannot tell which model this is.", hint="Convert it first: medsft convert.")
    if base.tokenizer is None:
        raise no_tokenizer_beside(base.weights)
    name, opened, notes = _template_of(base.tokenizer, template)
    return ModelSource(
        name=path.name,
        weights=path,
        iteration=base.iteration,
        tokens=max(base.config.vocab_size, opened.tokenizer.vocab_size),
        tokenizer=base.tokenizer,
        template=name,
        ends=tuple(end_tokens(opened, other_ends(base.config))),
        context=base.config.context,
        before_text=_before_text(opened),
        notes=(*base.warnings, *notes),
    )


def find_base_of(path: Path) -> ModelSource:
    """Return the base model of a run, of a model that a run was exported as, or of an adapter, prompted in the same template.

    Of a run that began with an adapter it has that adapter in it.

    Raises `ConfigError` for a model that does not say what it was made from, `MismatchError` where its base model is gone.
    """
    if is_adapter(path):
        return replace(find_model(path), name="base", adapter=None, notes=())
    plan = plan_of(path)
    base = inspect_base(Path(plan.base.path), plan.base.iteration)
    found = _prompted_as(plan, name="base", weights=base.path, iteration=base.iteration, notes=(), begins=path)
    return found if plan.base.adapter is None else replace(found, adapter=Path(plan.base.adapter.path))


def are_one_model(one: ModelSource, other: ModelSource) -> bool:
    """Tell whether two sources give the same answers: base models do whose runs begin with the same weights."""
    if replace(one, name="", begins=None) != replace(other, name="", begins=None):
        return False
    if one.begins is None or other.begins is None:
        return one.begins == other.begins
    return _beginning(plan_of(one.begins)) == _beginning(plan_of(other.begins))


def _beginning(plan: RunPlan) -> tuple[object, ...]:
    """Return what the weights that a run begins with follow from, see `engine.train.base_weights.base_source`."""
    return plan.base, plan.config.rules, plan.config.new_token_init, plan.trained_model.vocab_size


def plan_of(path: Path) -> RunPlan:
    """Return the plan of a run, or of the run that a model was exported from.

    Raises `ConfigError` for a model that does not say what it was made from.
    """
    if run_folder.is_run(path):
        return load_plan(RunDir(path))
    if not (path / EXPORT_MANIFEST).is_file():
        hint = "It takes a run, or a model that medsft has exported. Another base model is asked by a call of its own."
        raise ConfigError([Problem("--with base", f"{path} does not say which base model it was made from", hint)])
    try:
        return RunPlan.from_json(read_export(path)["plan"], where=str(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MismatchError(f"{path / EXPORT_MANIFEST}: cannot be read: {error}.") from None


def _of_run(path: Path, iteration: int | None) -> ModelSource:
    plan = load_plan(RunDir(path))
    exported = Path(plan.export_dir)
    if iteration is None and (exported / "config.json").is_file() and _is_model_of(plan, exported):
        return _prompted_as(plan, name=path.name, weights=exported, iteration=None, notes=())
    if iteration is None and (end := end_of_training(RunDir(path), plan)) is not None:
        iteration = finished_models(RunDir(path), plan, end).folders[exported]  # as its adapter was exported, without a model
    base = inspect_base(path, iteration)
    note = f"{path.name}: the checkpoint of iteration {base.iteration:,} of {plan.num_iterations:,} answers."
    return _prompted_as(plan, name=path.name, weights=path, iteration=base.iteration, notes=(*base.warnings, note))


def _of_adapter(path: Path, template: str | None) -> ModelSource:
    adapter, base = adapter_with_base(path)
    assert base.config is not None
    tokenizer = adapter.tokenizer or base.tokenizer
    if tokenizer is None:
        raise no_tokenizer_beside(base.weights)
    name, opened, notes = _template_of(tokenizer, template)
    return ModelSource(
        name=path.name,
        weights=base.path,
        iteration=base.iteration,
        adapter=path,
        tokens=max(adapter.vocab_size(base.config), opened.tokenizer.vocab_size),
        tokenizer=tokenizer,
        template=name,
        ends=tuple(end_tokens(opened, (*named_end_tokens(path), *other_ends(base.config)))),
        context=base.config.context,
        before_text=_before_text(opened),
        notes=(*base.warnings, *doubts_about_base(adapter, base), *notes),
    )


def _is_model_of(plan: RunPlan, folder: Path) -> bool:
    """Tell whether the finished model of a plan lies in a folder, by the names and sizes of its files.

    An adapter by itself (`--export adapter`) is no model.
    """
    if not (folder / "config.json").is_file():
        return False
    try:
        record = read_export(folder)
        made_by = RunPlan.from_json(record["plan"], where=str(folder)).identity
        return made_by == plan.identity and not sizes_differ(folder, record.get("files") or {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, MedsftError):
        return False


def _prompted_as(
    plan: RunPlan, *, name: str, weights: Path, iteration: int | None, notes: tuple[str, ...], begins: Path | None = None
) -> ModelSource:
    tokenizer, template, day = Path(plan.base.tokenizer), plan.config.template, plan.config.template_date or ""
    opened = open_for_prompts(tokenizer, template, day)
    return ModelSource(
        name=name,
        weights=weights,
        iteration=iteration,
        begins=begins,
        tokens=plan.base.model.vocab_size,
        tokenizer=tokenizer,
        template=template,
        template_date=day,
        ends=tuple(end_tokens(opened, other_ends(plan.base.model))),
        context=plan.base.model.context,
        notes=notes,
    )


def open_for_prompts(tokenizer: Path, template: str, day: str) -> OpenedTokenizer:
    """Open a tokenizer with a template, which writes `day` (YYYY-MM-DD; "": today) where it has a date. Raises `DataError`."""
    return open_tokenizer(tokenizer, template=template, today=date.fromisoformat(day) if day else None)


def _template_of(tokenizer: Path, wanted: str | None) -> tuple[str, OpenedTokenizer, tuple[str, ...]]:
    """Return (template, tokenizer opened with it, what to say): the wanted one, or the model's own where it has one."""
    if wanted is not None:
        return wanted, open_tokenizer(tokenizer, template=wanted), ()
    try:
        return "model", open_tokenizer(tokenizer, template="model"), ()
    except DataError:
        opened = open_tokenizer(tokenizer, template="meditron")
        return (
            "meditron",
            opened,
            ("The model has no chat template of its own: --template meditron is taken.",),
        )


def _before_text(opened: OpenedTokenizer) -> tuple[int, ...]:
    """Return what a tokenizer puts before a plain text: its token for the beginning, or nothing.

    A run, and what it was exported as, has nothing there: the exported tokenizer adds no tokens.
    """
    try:
        return opened.tokenizer.frame[0]
    except DataError:  # it names no end of text, which a document ends with, and no question
        return ()
