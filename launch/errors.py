"""Which errors are for the user, and how they read."""

import errno

from data.errors import ReelflowError

MAX_CHARACTERS = 4000  # of a message: about a screen


def describe(error: BaseException) -> str | None:
    """One message that says what happened and what to do, or None for a bug; of at most `MAX_CHARACTERS`."""
    message = _describe(error)
    if message is None or len(message) <= MAX_CHARACTERS:
        return message
    return f"{message[:MAX_CHARACTERS]} ... (and {len(message) - MAX_CHARACTERS} characters more)"


def _describe(error: BaseException) -> str | None:
    import ray.exceptions
    from ray.train import TrainingFailedError

    if isinstance(error, TrainingFailedError):
        causes = list(getattr(error, "worker_failures", {}).values()) or [error.__cause__]
        told = [text for cause in causes if cause is not None and (text := describe(_root(cause)))]
        return told[0] if told else f"training failed: {_root(causes[0] or error)}; give the command again to continue"
    if isinstance(error, ray.exceptions.RayTaskError):
        return describe(_root(error))
    if isinstance(error, OSError):
        place = f" at {error.filename}" if error.filename else ""
        if error.errno == errno.ENOSPC:
            return f"the disk is full{place}; free some space and start again: what was published is intact"
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return f"no permission to write{place}; choose another runs_dir or change the folder's owner"
        return f"{error.strerror or error}{place}"
    if isinstance(error, ReelflowError):
        return str(error)
    if isinstance(error, ray.exceptions.RayError):
        return f"Ray failed: {str(error).splitlines()[0]}; give the command again to continue, or use --debug"
    return None


def _root(error: BaseException) -> BaseException:
    """The error a worker raised, out of what Ray wrapped around it."""
    cause = getattr(error, "cause", None)
    return _root(cause) if isinstance(cause, BaseException) and cause is not error else error
