"""The `medsft` command: thin commands over the same functions that the library offers."""

import gc


def main() -> None:
    """Run the command line of this process. Ends with `SystemExit`."""
    # Before its first screen a process makes objects by the hundred thousand and hardly any garbage: look for it less often.
    gc.set_threshold(100_000, 20, 20)
    from medsft.cli.app import app

    app(prog_name="medsft")
