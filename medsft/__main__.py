"""`python -m medsft` is `medsft`."""

from medsft.cli import main

main()
