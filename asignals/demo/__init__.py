"""A small pizza shop that shows what signals are for; `asignals demo` runs it (extra: `asignals[demo]`).

Read `shop` first: the application that announces what happens in it, and the code that listens. `orders` is its
database, `customers` sends it HTTP requests, `report` measures its signals, and `run` is the command.
`live` is a page that several processes serve, which `workers` starts.
"""
