"""Scores token ids with lm-evaluation-harness and prints how long that took. Runs in the harness's own environment.

python peer_harness.py MODEL FILE.json bf16|fp32 BATCH
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main() -> None:
    from lm_eval.models.huggingface import HFLM

    model, file, precision, batch = sys.argv[1:]
    dtype = {"bf16": "bfloat16", "fp32": "float32"}[precision]
    harness = HFLM(pretrained=model, dtype=dtype, batch_size=int(batch), device="cpu")
    questions = json.loads(Path(file).read_text(encoding="utf-8"))
    requests = [
        ((f"{number}", f"{option}"), prefix, continuation)
        for number, (prefix, continuations) in enumerate(questions)
        for option, continuation in enumerate(continuations)
    ]
    began = time.perf_counter()
    found = harness._loglikelihood_tokens(requests, disable_tqdm=True)
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "sums": [float(total) for total, _ in found]}))


if __name__ == "__main__":
    main()
