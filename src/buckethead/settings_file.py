"""The user's settings in a TOML file, where there is one.

Reading it raises only ConfigError. Its tables are of any form: whoever uses one checks it.
"""

import os
import tomllib
from pathlib import Path
from typing import Any, Final

from buckethead.errors import ConfigError

TOML_PATH: Final = "~/.config/buckethead/config.toml"


def settings_table(name: str) -> dict[str, Any]:
    """The table ``[name]`` of the file, empty where there is none. Raises ConfigError."""
    # os.path leaves "~" as it is where there is no home; Path would raise
    path = Path(os.path.expanduser(TOML_PATH))
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}: check its permissions") from None
    except ValueError as error:  # TOMLDecodeError tells the line, UnicodeDecodeError the position
        raise ConfigError(f"{path} is not valid TOML: {error}: correct it") from None
    table = document.get(name, {})
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: {name!r} is not a table: write [{name}] above the settings")
    return table
