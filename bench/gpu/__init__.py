"""The check of a machine with a GPU: is medsft right there, and how fast. `python -m bench gpu`; see docs/gpu.md.

check     the parts one after the other, each in a process of its own, within the budget; exit code, tables
part      what a part gets and gives back
machine, attention, fused, runs, adapters, perf, peers, layouts     the parts
shapes    models of the published sizes with random weights, and rows for them
trained   some iterations of a plan without its files, as ranks of a run do them
report    what was found as Markdown
wheels    what a bare image lacks, as wheels
"""
