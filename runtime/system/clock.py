"""The time that is written into bundles."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime

from denseport.runtime.errors import InputError

__all__ = ["timestamp"]

LAST = 253402300799  # the end of the year 9999, which ISO 8601 and datetime go up to


def timestamp() -> str:
    """Now, in seconds, as ISO 8601; of SOURCE_DATE_EPOCH where that is set, so that a build can be repeated exactly.

    Source: https://reproducible-builds.org/specs/source-date-epoch.

    Raises:
        InputError: SOURCE_DATE_EPOCH is no number of seconds since 1970.
    """
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given is None:
        return datetime.now(UTC).isoformat(timespec="seconds")
    if not re.fullmatch("[0-9]{1,12}", given) or int(given) > LAST:
        what = f"SOURCE_DATE_EPOCH is {given!r}: not seconds since 1970"
        raise InputError(what, "Set it to a whole number, as date +%s prints it, or unset it.")
    return datetime.fromtimestamp(int(given), UTC).isoformat()
