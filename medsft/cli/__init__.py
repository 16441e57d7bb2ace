"""The `medsft` command: thin commands over the same functions that the library offers."""


def main() -> None:
    """Run the command line of this process. Ends with `SystemExit`."""
    from medsft.cli.app import app

    app(prog_name="medsft")
