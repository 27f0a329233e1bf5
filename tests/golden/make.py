"""Writes the databases of this folder: what buckethead 0.1 to 0.4 left at a key, a plain SQLite
file. Run it to make them anew: ``python tests/golden/make.py``.

`kv`, `docs` and the files had the tables written out here. Of ``bh_local_files`` and
``filestore_shares`` only the names are known for certain: their columns here are the fewest that
make sense. Only Python's own sqlite3 is used, so nothing here depends on the package.
"""

import hashlib
import sqlite3
from pathlib import Path

FOLDER = Path(__file__).parent

BLOB = b"content of a file\n"
BH_KEY = hashlib.sha256(BLOB).hexdigest()

OLD_SHARE = "file/00000000.txt"

KV = [("greeting", "grün"), ("raw", b"\xff\x00"), ("count", "41")]
DOCS = [
    ("people", "1", '{"name": "Zoë", "age": 30, "_id": "1"}'),
    ("people", "2", '{"name": "Al", "age": 20}'),
    ("odd", "nan", '{"value": NaN}'),
]

SCHEMA = """
CREATE TABLE bh_kv (
    key TEXT PRIMARY KEY,
    value BLOB NOT NULL,
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL
);
CREATE TABLE bh_docs (
    collection TEXT NOT NULL,
    id TEXT NOT NULL,
    doc TEXT NOT NULL,
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    PRIMARY KEY (collection, id)
);
CREATE TABLE filestore (
    bh_key TEXT PRIMARY KEY,
    object_key TEXT NOT NULL,
    size INTEGER NOT NULL,
    mime TEXT,
    filename TEXT,
    created_at REAL NOT NULL,
    metadata TEXT
);
CREATE INDEX idx_filestore_created ON filestore(created_at);
CREATE TABLE bh_local_files (path TEXT PRIMARY KEY, bh_key TEXT NOT NULL, size INTEGER NOT NULL);
CREATE TABLE filestore_shares (
    share_key TEXT PRIMARY KEY,
    bh_key TEXT NOT NULL,
    created_at REAL NOT NULL
);
CREATE TABLE visit (id INTEGER PRIMARY KEY, page TEXT, at REAL);
CREATE INDEX visit_page ON visit(page);
CREATE VIEW visits AS SELECT page, count(*) AS number FROM visit GROUP BY page;
CREATE TRIGGER visit_at AFTER INSERT ON visit WHEN new.at IS NULL
    BEGIN UPDATE visit SET at = 1.0 WHERE id = new.id; END;
"""


def write(path: Path, *pragmas: str) -> bytes:
    """A database of that form and those pragmas in a new file; its bytes."""
    plain = sqlite3.connect(path, isolation_level=None)
    for pragma in pragmas:
        plain.execute(f"PRAGMA {pragma}")
    plain.executescript(SCHEMA)
    plain.execute("BEGIN")
    plain.executemany("INSERT INTO bh_kv VALUES (?, ?, 1.0, 2.0)", KV)
    plain.executemany("INSERT INTO bh_docs VALUES (?, ?, ?, 1.0, 2.0)", DOCS)
    row = (BH_KEY, f"files/{BH_KEY}", len(BLOB), "text/plain", "file.txt", 3.0, '{"from": "0.4"}')
    plain.execute("INSERT INTO filestore VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    plain.execute("INSERT INTO bh_local_files VALUES ('/data/file.txt', ?, ?)", (BH_KEY, len(BLOB)))
    plain.execute("INSERT INTO filestore_shares VALUES (?, ?, 4.0)", (OLD_SHARE, BH_KEY))
    plain.executemany("INSERT INTO visit(page) VALUES (?)", [("home",), ("about",), ("home",)])
    plain.execute("COMMIT")
    plain.close()  # of a database in WAL mode the last connection leaves one whole file
    return path.read_bytes()


FORMS = {
    "plain": (),
    "wal": ("page_size=1024", "journal_mode=wal"),
    "utf16": ("page_size=1024", "encoding='UTF-16le'"),
    "vacuum": ("page_size=512", "auto_vacuum=full"),
}
"""The pragmas of each file here, by its name."""


def main() -> None:
    """Write every file anew."""
    for name, pragmas in FORMS.items():
        path = FOLDER / f"{name}.db"
        path.unlink(missing_ok=True)
        write(path, *pragmas)


if __name__ == "__main__":
    main()
