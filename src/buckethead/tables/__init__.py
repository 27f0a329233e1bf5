"""The layers as tables in SQL, on every connection there is: `install` sees to that.

The rule: eponymous virtual tables, so nothing of them is in the schema and other tools open the
image. A volume can be attached to any connection, and ATTACH tells nobody; so all connections get
the tables, which refuse databases that are no volume. SQLite connects a table when it is first
named.
"""

from functools import partial
from typing import cast

import apsw

from ..registry import Registry
from .branches import BranchesModule
from .files import FilesModule
from .kv import KVModule
from .status import StatusModule

_READ_ONLY = ("bh_status",)


def install(registry: Registry) -> None:
    """Give the tables to every connection opened from now on."""
    modules: dict[str, object] = {
        "bh_branches": BranchesModule(registry),
        "bh_files": FilesModule(),
        "bh_kv": KVModule(),
        "bh_status": StatusModule(),
    }
    apsw.connection_hooks.append(partial(_add_to, modules))


def _add_to(modules: dict[str, object], connection: apsw.Connection) -> None:
    for name, module in modules.items():
        connection.create_module(
            name,
            cast("apsw.VTModule", module),  # APSW does not need all the methods of its protocol
            use_bestindex_object=True,
            use_no_change=True,
            eponymous=True,
            eponymous_only=True,
            read_only=name in _READ_ONLY,
        )
