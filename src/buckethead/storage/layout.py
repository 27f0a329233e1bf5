"""Every object key, built in one place.

| key | what |
|---|---|
| ``K`` | the image: a plain SQLite database file |
| ``K.prev`` | the image before it |
"""


def previous(key: str) -> str:
    """Where the image before the one at ``key`` is kept."""
    return f"{key}.prev"
