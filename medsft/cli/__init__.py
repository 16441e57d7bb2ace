"""The `medsft` command: thin commands over the same functions that the library offers."""

import gc
import sys

from medsft.errors import ExitCode


def main() -> None:
    """Run the command line of this process. Ends with `SystemExit`."""
    # Before its first screen a process makes objects by the hundred thousand and hardly any garbage: look for it less often.
    gc.set_threshold(100_000, 20, 20)
    try:
        from medsft.cli.app import app
    except ImportError as error:  # Python would end with 1, which means "finished"
        sys.stderr.write(f"medsft: it is not installed as a whole: {error}\n    Install it again: pip install medsft\n")
        sys.exit(ExitCode.LAUNCH)

    app(prog_name="medsft")
