"""What a send costs, beside the loop a person would write by hand and beside other libraries.

`python -m benchmarks --help` tells how to run it. `receivers` holds what is called, `contenders` who calls it, `cases`
and `concurrency` what is compared and the goals, `timing` how, and `report` and `chart` show it.
"""
