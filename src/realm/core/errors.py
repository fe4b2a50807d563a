"""Every error Realm shows to someone: a code to match on, the value, the limit and a hint."""

from __future__ import annotations


class RealmError(Exception):
    """Base of all errors caused by someone else's input or by a limit.

    Args:
        message: One line that holds the offending value and the limit.
        code: Stable machine-readable code, e.g. ``context_length_exceeded``.
        param: The request parameter or option at fault, if one is.
        hint: What to do about it, one line.
    """

    status = 400
    type = "invalid_request_error"
    default_code = "invalid_request"

    def __init__(
        self, message: str, *, code: str | None = None, param: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.param = param
        self.hint = hint


class InvalidRequest(RealmError):
    """A request that can never succeed as it is (400)."""


class UnsupportedParameter(InvalidRequest):
    """A known parameter that this build does not support (400). Nothing is accepted and ignored."""

    default_code = "unsupported_parameter"


class ContextLengthExceeded(InvalidRequest):
    """Prompt plus requested output does not fit the model's or server's context (400)."""

    default_code = "context_length_exceeded"


class Unauthorized(RealmError):
    """No key, or a key that is not known (401)."""

    status = 401
    type = "authentication_error"
    default_code = "invalid_api_key"


class NotFound(RealmError):
    """An unknown model, adapter or request, or one that the caller may not see (404)."""

    status = 404
    default_code = "not_found"


class Conflict(InvalidRequest):
    """Nothing is wrong with the request, but the state that it meets doesn't allow it (409)."""

    status = 409
    default_code = "conflict"


class PayloadTooLarge(InvalidRequest):
    """A body over the server's limit (413)."""

    status = 413
    default_code = "payload_too_large"


class Overloaded(RealmError):
    """The queue is full or a rate is exceeded (429); retry later."""

    status = 429
    type = "rate_limit_error"
    default_code = "queue_full"

    def __init__(self, message: str, *, retry_after_seconds: float = 1.0, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.retry_after_seconds = retry_after_seconds


class ModelFileError(RealmError):
    """A GGUF, adapter or tokenizer file that is truncated, corrupt, hostile or of an unknown kind."""

    default_code = "invalid_model_file"


class Unavailable(RealmError):
    """The server is starting, shutting down, or a model's engine has broken down (503)."""

    status = 503
    type = "server_error"
    default_code = "unavailable"


class DeadlineExceeded(RealmError):
    """The deadline that the client or the server set passed before the request ended (408): not the server's fault."""

    status = 408
    type = "timeout_error"
    default_code = "deadline_exceeded"


class Internal(RealmError):
    """Our own fault (500); the message never carries internals."""

    status = 500
    type = "server_error"
    default_code = "internal_error"
