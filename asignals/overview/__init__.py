"""What is connected to what in a program: found, listed and drawn, for `asignals list` and `asignals graph`."""
