"""The layers as tables in SQL, on every connection there is: `install` sees to that.

The rule: eponymous virtual tables, so nothing of them is in the schema and other tools open the
image. A volume can be attached to any connection, and ATTACH tells nobody; so all connections get
the tables, which refuse databases that are no volume. SQLite connects a table when it is first
named.
"""

from typing import cast

import apsw

from .kv import KVModule

_KV = cast("apsw.VTModule", KVModule())  # APSW does not need all the methods of its protocol


def install() -> None:
    """Give the tables to every connection opened from now on."""
    apsw.connection_hooks.append(_add_to)


def _add_to(connection: apsw.Connection) -> None:
    connection.create_module(
        "bh_kv",
        _KV,
        use_bestindex_object=True,
        use_no_change=True,
        eponymous=True,
        eponymous_only=True,
    )
