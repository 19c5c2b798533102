"""Names for what an output was made from."""

import json
from hashlib import sha256
from typing import Any


def fingerprint(value: Any) -> str:  # noqa: ANN401 - any JSON value
    """A short name for a JSON value."""
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
