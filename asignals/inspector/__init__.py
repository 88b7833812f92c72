"""The inspector: a live page of what is connected, what was sent, and how long it took.

    app.mount("/signals", Inspector())

An ASGI app for any ASGI 3 framework. Needs the extra `asignals[inspector]` (Starlette and Jinja2).
"""

from asignals.overview.extras import needs as _needs

with _needs("inspector"):
    from asignals.inspector._access import loopback_only as loopback_only
    from asignals.inspector._app import Inspector as Inspector

__all__ = ["Inspector", "loopback_only"]
