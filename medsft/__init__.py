"""Fine-tune a Llama-family medical language model on questions and answers, conversations or texts.

    from pathlib import Path

    import medsft

    config = medsft.RunConfig(checkpoint="meditron", size=7, run_name="pubmedqa", data=(Path("train.jsonl"),))
    view = medsft.run(config, medsft.load_settings())
    print(view.outcome, view.export)

Names are imported when they are first used, so that `import medsft` costs next to nothing. Nothing here imports torch:
training, export and conversion run as processes of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from medsft.core.config.file import load_toml as load_toml
    from medsft.core.config.file import save_toml as save_toml
    from medsft.core.config.run_config import RunConfig as RunConfig
    from medsft.core.data.dataset.dataset import TokenizedDataset as TokenizedDataset
    from medsft.core.data.dataset.dataset import open_tokenized as open_tokenized
    from medsft.core.data.dataset.lengths import length_report as length_report
    from medsft.core.data.dataset.spec import TokenizeSpec as TokenizeSpec
    from medsft.core.data.dataset.tokenize import tokenize as tokenize
    from medsft.core.data.sources.conversation import Conversation as Conversation
    from medsft.core.data.sources.conversation import Message as Message
    from medsft.core.data.sources.read import rows_of_files as open_rows  # noqa: F401
    from medsft.core.evaluation.tasks.of_run import plan_run as plan  # noqa: F401
    from medsft.core.planning.plan import RunPlan as RunPlan
    from medsft.core.planning.planner import preview as preview
    from medsft.core.run.events import Event as Event
    from medsft.core.run.rundir import RunDir as RunDir
    from medsft.core.run.rundir import find_runs as find_runs
    from medsft.core.run.view import RunView as RunView
    from medsft.core.run.view import fold as fold
    from medsft.core.settings import Settings as Settings
    from medsft.core.settings import load_settings as load_settings
    from medsft.core.workflow import follow as follow
    from medsft.core.workflow import prepare as prepare
    from medsft.core.workflow import resume as resume
    from medsft.core.workflow import run as run
    from medsft.core.workflow import start as start
    from medsft.core.workflow import tokenize_sets as tokenize_sets
    from medsft.errors import MedsftError as MedsftError

_PUBLIC = {
    "RunConfig": "core.config.run_config",
    "load_toml": "core.config.file",
    "save_toml": "core.config.file",
    "length_report": "core.data.dataset.lengths",
    "TokenizeSpec": "core.data.dataset.spec",
    "tokenize": "core.data.dataset.tokenize",
    "TokenizedDataset": "core.data.dataset.dataset",
    "open_tokenized": "core.data.dataset.dataset",
    "open_rows": "core.data.sources.read:rows_of_files",
    "Conversation": "core.data.sources.conversation",
    "Message": "core.data.sources.conversation",
    "RunPlan": "core.planning.plan",
    "plan": "core.evaluation.tasks.of_run:plan_run",
    "preview": "core.planning.planner",
    "Event": "core.run.events",
    "RunDir": "core.run.rundir",
    "find_runs": "core.run.rundir",
    "RunView": "core.run.view",
    "fold": "core.run.view",
    "Settings": "core.settings",
    "load_settings": "core.settings",
    "follow": "core.workflow",
    "prepare": "core.workflow",
    "resume": "core.workflow",
    "run": "core.workflow",
    "start": "core.workflow",
    "tokenize_sets": "core.workflow",
    "MedsftError": "errors",
}
"""Public name -> where it is, with the name it has there if that is another one."""

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'medsft' has no attribute '{name}'")
    from importlib import import_module

    module, _, original = _PUBLIC[name].partition(":")
    value = getattr(import_module(f"medsft.{module}"), original or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
