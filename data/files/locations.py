"""Where files lie: paths, and URIs of stores. None may hold credentials, as they get into configurations and logs."""

import re
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BeforeValidator
from pydantic_core import PydanticCustomError

from data.errors import ReelflowError, quoted
from data.records import HIDDEN, expand_home

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

LOCAL_SCHEME = "file://"
SCHEMES = ("file", "memory", "s3", "gs", "az")  # not pipe or http: a table must not run commands or send requests
STORES = tuple(scheme for scheme in SCHEMES if scheme != "file")
"""Where an object is replaced whole, so that no reader finds half of one."""
ASK = "check the address, the credentials and the endpoint (docs/guides/cluster.md, Object stores)"
WAY_OUT = "give credentials in the environment or in a profile of each machine (docs/guides/cluster.md, Object stores)"
_PASSWORD = re.compile(
    r"^[a-z][a-z0-9+.-]*://[^/?#@]*:[^/?#]*@", re.IGNORECASE
)  # user:password@ before the first slash
_PARAMETER = re.compile(
    r"[?&;](x-(?:amz|goog)-(?:signature|credential|security-token)|awsaccesskeyid|signature|sig|(?:secret|access)[-_]?key"
    r"|(?:access[-_]?)?token|key|secret|password)=",
    re.IGNORECASE,
)


class LocationError(ReelflowError, ValueError):
    """A URI that cannot be used; the message says why."""


class CredentialsError(LocationError):
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


def filesystem_of(uri: str) -> "tuple[AbstractFileSystem, str]":
    """The file system of a URI, and the path in it.

    Raises:
        LocationError: its kind is not one of `SCHEMES` or needs a package that is not installed, it names no bucket, or
            it holds credentials.
    """
    import fsspec

    check_no_credentials(uri)
    scheme = uri.partition("://")[0]
    if scheme not in SCHEMES:
        raise LocationError(f"{uri} is of the kind {scheme!r}; allowed are {', '.join(SCHEMES)}")
    try:
        files, path = fsspec.url_to_fs(uri)
    except ImportError as error:
        raise LocationError(f"{uri} needs a package that is not installed: {error}") from error
    if not path:
        raise LocationError(f"{uri} names no bucket")
    return files, str(path)


def client_errors(uri: str) -> tuple[type[Exception], ...]:
    """Exceptions other than OSError that the client of the store at a URI raises when it gets no answer."""
    scheme = uri.partition("://")[0]
    if scheme == "s3":
        from aiohttp import ClientError
        from botocore.exceptions import BotoCoreError

        return ClientError, BotoCoreError
    if scheme == "az":
        return (import_module("azure.core.exceptions").AzureError,)  # of a package that the constraints do not pin
    return ()


def _check_place(place: str) -> str:
    try:
        check_no_credentials(place)
    except CredentialsError as error:
        raise PydanticCustomError(HIDDEN, "{why}", {"why": str(error)}) from error
    return expand_home(place)


def is_uri(place: object) -> bool:
    """Whether a place is the URI of something in a store, and no path."""
    return isinstance(place, str) and "://" in place


def _read_folder(value: Any) -> Any:  # noqa: ANN401 - whatever a configuration may hold
    if not is_uri(value):
        return Path(value) if isinstance(value, str) else value
    scheme, _, path = _check_place(value).partition("://")
    path = path.rstrip("/")
    uri = f"{scheme}://{path}"
    if scheme not in STORES:
        raise ValueError(f"it must be a path, or the URI of a folder in an object store ({', '.join(STORES)})")
    if not path or any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError(f"{quoted(uri)} names no folder of a store: it has an empty part, or the part . or ..")
    return uri


Folder = Annotated[Path | str, BeforeValidator(_read_folder)]
"""A field of the configuration: the path of a folder, or the URI of one in an object store, as text."""

Place = Annotated[str, AfterValidator(_check_place)]
"""A field of the configuration: a path, which may begin with `~`, or a URI without credentials."""
