"""The benchmarks that are known by name: who reads each, where it comes from, and under which license."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from medsft.core.data.sources.recognize import NOTHING_SAID
from medsft.core.data.sources.row_looks import RowOptions
from medsft.core.evaluation.benchmark import Task
from medsft.core.evaluation.tasks.multiple_choice import read_medmcqa, read_medqa, read_mmlu
from medsft.core.evaluation.tasks.own import read_own
from medsft.core.evaluation.tasks.pubmedqa import read_pubmedqa


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One benchmark that is known by name."""

    read: Callable[[Path], Task]
    source: str


BENCHMARKS: Mapping[str, Benchmark] = {
    "pubmedqa": Benchmark(
        read_pubmedqa, "PubMedQA, Jin et al. 2019 (arXiv:1909.06146), https://github.com/pubmedqa/pubmedqa, MIT license"
    ),
    "medqa": Benchmark(read_medqa, "MedQA, Jin et al. 2020 (arXiv:2009.13081), https://github.com/jind11/MedQA, MIT license"),
    "medmcqa": Benchmark(
        read_medmcqa, "MedMCQA, Pal et al. 2022 (arXiv:2203.14371), https://medmcqa.github.io, Apache License 2.0"
    ),
    "mmlu": Benchmark(
        read_mmlu, "MMLU, Hendrycks et al. 2021 (arXiv:2009.03300), https://github.com/hendrycks/test, MIT license"
    ),
}


def read_task(name: str, path: Path, *, truth: Path | None = None, wanted: RowOptions = NOTHING_SAID) -> Task:
    """Read a benchmark by its name, or with another name the questions of one's own in a file.

    `truth` is PubMedQA's `test_ground_truth.json`, where it does not lie beside the rows; `wanted` names the keys of
    one's own rows. Raises DataError.
    """
    benchmark = BENCHMARKS.get(name)
    if benchmark is None:
        return read_own(path, BENCHMARKS, wanted)
    task = read_pubmedqa(path, truth) if name == "pubmedqa" else benchmark.read(path)
    return replace(task, source=benchmark.source)
