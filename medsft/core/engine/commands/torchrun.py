"""torchrun, whose ranks have `STOP_SECONDS` to save after a SIGTERM: `python -m medsft.core.engine.commands.torchrun ...`.

From torch 2.12 on, TORCH_ELASTIC_SHUTDOWN_TIMEOUT says so. torchrun of 2.10 and 2.11 does not know the variable, and would kill
the ranks after 30 seconds.
"""

from __future__ import annotations

import signal
from typing import Any

from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.run import main

from medsft.core.run.launch import STOP_SECONDS

_shutdown = LocalElasticAgent._shutdown


def _shutdown_with_patience(agent: LocalElasticAgent, *signals: signal.Signals, **options: Any) -> None:
    """Pass a signal that has reached torchrun on to the ranks and wait for them, before torch does so in its own way.

    Only then is the signal an argument, and from torch 2.12 on the time is, too.
    """
    if signals and "timeout" not in options and agent._pcontext is not None:
        agent._pcontext.close(signals[0], timeout=STOP_SECONDS)
    _shutdown(agent, *signals, **options)


if __name__ == "__main__":
    LocalElasticAgent._shutdown = _shutdown_with_patience  # type: ignore[assignment, method-assign]
    main()
