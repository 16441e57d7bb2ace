"""Measurements of medsft on the machine at hand. `python -m bench` runs them all; see docs/performance.md."""
