"""Metadata of a directory bucket's objects, in files beside them: ``<key>/<crc>.json``.

Metadata is written before its object and believed only for content with its checksum: a file that
another program has put there has none.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from shutil import rmtree
from typing import IO
from urllib.parse import quote

from fastcrc import crc64
from pydantic import ConfigDict, TypeAdapter, ValidationError

from buckethead.errors import BucketError
from buckethead.storage.localfiles import TemporaryFiles, make_folders, sync_folder, unlinked

# Of one name in a folder, in bytes.
LONGEST_NAME = 255
_CHUNK = 1024 * 1024
_METADATA: TypeAdapter[dict[str, str]] = TypeAdapter(
    dict[str, str], config=ConfigDict(hide_input_in_errors=True)
)


class Sidecars:
    """The metadata files in ``folder``; ``url`` names the bucket in messages."""

    def __init__(self, folder: Path, temporary: TemporaryFiles, url: str) -> None:
        self._folder = folder
        self._temporary = temporary
        self._url = url

    def of_file(self, key: str, file: IO[bytes]) -> dict[str, str]:
        """The metadata of the object that ``file`` reads from its beginning.

        Raises BucketError when it is damaged.
        """
        if not self._of_key(key).is_dir():
            return {}
        checksum = 0
        while chunk := file.read(_CHUNK):
            checksum = crc64.go_iso(chunk, checksum)
        return self.of_content(key, checksum)

    def of_content(self, key: str, checksum: int) -> dict[str, str]:
        """The metadata of the object with that CRC-64. Raises BucketError when it is damaged."""
        path = self._of_key(key) / _name(checksum)
        try:
            return _METADATA.validate_json(path.read_bytes())
        except FileNotFoundError:
            return {}
        except ValidationError as error:
            raise BucketError(
                f"Could not read the metadata of {key!r} at {self._url}: {path} is damaged. "
                "Delete that file to use the object without metadata."
            ) from error

    def write(self, key: str, checksum: int, metadata: Mapping[str, str]) -> None:
        """Keep the metadata of the content with that CRC-64; nothing where there is none."""
        if not metadata:
            return
        folder = self._of_key(key)
        make_folders(folder)
        with self._temporary.new() as sidecar:
            sidecar.fill([json.dumps(dict(metadata)).encode()], lambda size: None)
            os.replace(sidecar.path, folder / _name(checksum))
        sync_folder(folder)

    def drop(self, key: str) -> None:
        """Remove all metadata of an object."""
        with suppress(FileNotFoundError):
            rmtree(self._of_key(key))

    def drop_others(self, key: str, checksum: int) -> None:
        """Remove the metadata of contents the object had before."""
        for sidecar in self._of_key(key).iterdir():
            if sidecar.name != _name(checksum):
                sidecar.unlink()

    def _of_key(self, key: str) -> Path:
        name = quote(key, safe="", errors="surrogateescape")
        if len(name) > LONGEST_NAME:
            # "=" is never in a quoted key
            name = "=" + hashlib.sha256(os.fsencode(key)).hexdigest()
        return unlinked(self._folder / name)


def _name(checksum: int) -> str:
    return f"{checksum:016x}.json"
