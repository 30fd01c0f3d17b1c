"""Every error a caller can see. Each says what, how much, the limit and the remedy; each carries a code and an HTTP status.

Three kinds never mix: the caller's fault (`InvalidRequest` and its kin), our fault in one step (`EngineDied`), and broken
invariants (`assert`, never used for input).
"""

from __future__ import annotations


class Error(Exception):
    """Root of all errors raised on purpose.

    `code` is stable and machine-readable, `status` the HTTP status, `param` the request field at fault (or None),
    `retry_after_s` a hint for clients that may try again (or None).
    """

    code = "internal"
    status = 500
    type = "server_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class InvalidRequest(Error):
    """The request is wrong: a field, its value and the limit are named."""

    code = "invalid_request"
    status = 400
    type = "invalid_request_error"


class PromptTooLong(InvalidRequest):
    """The prompt, or the prompt and the tokens to generate, do not fit the context."""

    code = "context_length_exceeded"


class UnknownModel(Error):
    """The request names a model that is not served here."""

    code = "model_not_found"
    status = 404
    type = "invalid_request_error"


class NotFound(Error):
    """No such route or object."""

    code = "not_found"
    status = 404
    type = "invalid_request_error"


class Unauthorized(Error):
    """No key, or a wrong one."""

    code = "invalid_api_key"
    status = 401
    type = "authentication_error"


class Forbidden(Error):
    """The key is known, and may not do this."""

    code = "forbidden"
    status = 403
    type = "permission_error"


class TooManyRequests(Error):
    """The key has as many requests open as it may; try again later."""

    code = "rate_limit_exceeded"
    status = 429
    type = "rate_limit_error"


class PayloadTooLarge(Error):
    """The body is over the limit."""

    code = "payload_too_large"
    status = 413
    type = "invalid_request_error"


class PinRefused(InvalidRequest):
    """A prefix cannot be kept: the quota is spent, or nothing of it is cached."""

    code = "pin_refused"


class QueueFull(Error):
    """The waiting queue is full; try again later."""

    code = "queue_full"
    status = 503
    type = "overloaded_error"


class NotReady(Error):
    """The engine is starting, restarting or draining."""

    code = "not_ready"
    status = 503
    type = "overloaded_error"


class RequestTimeout(Error):
    """The request passed its own deadline."""

    code = "timeout"
    status = 504
    type = "timeout_error"


class BodyTimeout(RequestTimeout):
    """The body of a request did not arrive in time."""

    status = 408


class Aborted(Error):
    """The request was aborted by its owner or an operator."""

    code = "aborted"
    status = 499
    type = "aborted_error"


class EngineDied(Error):
    """The engine stopped while the request was open; it is being restarted."""

    code = "engine_restarted"
    status = 503
    type = "server_error"


class StartError(Error):
    """The server or an offline engine cannot start: a missing or broken model, a bad option, a port in use."""

    code = "start_failed"


class ConfigError(StartError):
    """An option is unknown or out of range."""

    code = "bad_option"


class ModelError(StartError):
    """Model files are missing, truncated or of an unknown kind."""

    code = "bad_model"
