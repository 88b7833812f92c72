"""`python -m asignals`: the command `asignals`."""

from asignals.cli import main

main()
