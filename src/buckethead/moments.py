"""A moment as a person writes it, for ``--at`` and the URI parameter ``at``."""

import re
from datetime import datetime

from .errors import ConfigError

_SECONDS = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 3_600),
    **dict.fromkeys(("d", "day", "days"), 86_400),
    **dict.fromkeys(("w", "week", "weeks"), 604_800),
}
_AGO = re.compile(rf"(\d+(?:\.\d+)?)\s*({'|'.join(_SECONDS)})\s+ago")
_UNIX_SECONDS = re.compile(r"\d{9,11}(\.\d+)?")  # 1973 to 5138; 8 digits are a date


def parse_moment(text: str, now: float) -> float:
    """The moment that ``text`` means, in unix seconds; ``now`` likewise.

    ISO 8601 ("2026-03-01", "2026-03-01T12:30:00+01:00"; without an offset it is local time), unix
    seconds ("1772364600"), or a time before now ("90 seconds ago", "10 min ago", "2 days ago").
    Raises ConfigError.
    """
    wanted = text.strip().lower()
    ago = _AGO.fullmatch(wanted)
    if ago is not None:
        return now - float(ago[1]) * _SECONDS[ago[2]]
    if _UNIX_SECONDS.fullmatch(wanted):
        return float(wanted)
    try:
        return datetime.fromisoformat(wanted.upper()).timestamp()
    except (ValueError, OverflowError, OSError):  # the latter two: a year that has no local time
        raise ConfigError(
            f"Could not tell which moment {text!r} is. Write it as 2026-03-01T12:30 (local time) "
            "or 2026-03-01T12:30Z, as unix seconds, or as '10 minutes ago'."
        ) from None
