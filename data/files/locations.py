"""Where files lie: paths, and URIs of stores. None may hold credentials, as they get into configurations and logs."""

import re
from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from data.errors import ReelflowError
from data.records import HIDDEN, expand_home

WAY_OUT = "give credentials in the environment or in a profile of each machine (docs/guides/cluster.md, Object stores)"
_PASSWORD = re.compile(
    r"^[a-z][a-z0-9+.-]*://[^/?#@]*:[^/?#]*@", re.IGNORECASE
)  # user:password@ before the first slash
_PARAMETER = re.compile(
    r"[?&;](x-(?:amz|goog)-(?:signature|credential|security-token)|awsaccesskeyid|signature|sig|(?:secret|access)[-_]?key"
    r"|(?:access[-_]?)?token|key|secret|password)=",
    re.IGNORECASE,
)


class CredentialsError(ReelflowError, ValueError):
    """A URI holds credentials; the message says which kind, and does not show them."""


def check_no_credentials(place: str) -> None:
    """Refuse a URI with a password, or with a parameter that signs or authorises a request.

    Args:
        place: a URI; a path on this machine has nothing to refuse.

    Raises:
        CredentialsError: it holds credentials.
    """
    if "://" not in place:
        return
    if _PASSWORD.match(place):
        raise CredentialsError(f"the URI holds a password (before its @): {WAY_OUT}")
    if found := _PARAMETER.search(place):
        raise CredentialsError(f"the URI holds credentials (its parameter {found[1]}): {WAY_OUT}")


def _check_place(place: str) -> str:
    try:
        check_no_credentials(place)
    except CredentialsError as error:
        raise PydanticCustomError(HIDDEN, "{why}", {"why": str(error)}) from error
    return expand_home(place)


Place = Annotated[str, AfterValidator(_check_place)]
"""A field of the configuration: a path, which may begin with `~`, or a URI without credentials."""
