"""A relay's schema as an AsyncAPI 3.0 document, and what a change of it breaks; `asignals relay asyncapi` (extra: cli).

- `document(relay)`: what it exports and receives, with JSON schemas of the signals' stubs.
- `compare(old, new)`: each `Change` between two documents, and whether it breaks readers.

The words that are AsyncAPI's are used as there; what it has none for is in `x-asignals`: a message's schema version,
the oldest version that upcasters read, the key, the codecs. Nothing here connects to a server.
"""

from asignals.relay.asyncapi._changes import Change as Change
from asignals.relay.asyncapi._changes import compare as compare
from asignals.relay.asyncapi._document import document as document

__all__ = ["Change", "compare", "document"]
