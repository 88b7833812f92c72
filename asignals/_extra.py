"""Where `asignals.relay` and `asignals.sqlalchemy` still look for `needs`; it is in `asignals.overview.extras`."""

from asignals.overview.extras import needs as needs
