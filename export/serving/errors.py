"""Errors as OpenAI's API reports them: a status, and `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import JSONResponse

from workbench.core.errors import in_one_line

STATUS_CODES = {404: "not_found", 405: "method_not_allowed", 408: "upload_too_slow", 413: "request_too_large"}


class ApiError(Exception):
    """A request that gets an error as its answer.

    Args:
        status: the HTTP status.
        message: one sentence that says what is wrong and what was expected.
        code: a short name of the error, for programs.
        param: the field of the request that is to blame.
        retry_after: seconds after which the same request may succeed.
    """

    def __init__(
        self, status: int, message: str, code: str, param: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(in_one_line(message))
        self.status, self.code, self.param = status, code, param
        self.headers: Mapping[str, str] = {} if retry_after is None else {"Retry-After": str(retry_after)}
        if status == 401:
            self.headers = {"WWW-Authenticate": "Bearer"}

    @property
    def kind(self) -> str:
        """OpenAI's `type`."""
        if self.status == 429:
            return "rate_limit_error"
        return "server_error" if self.status >= 500 else "invalid_request_error"

    @property
    def body(self) -> dict[str, dict[str, str | None]]:
        """The answer's JSON."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The whole answer."""
        return JSONResponse(self.body, self.status, self.headers)


def bad_value(param: str, message: str) -> ApiError:
    """A field of the request has a wrong value."""
    return ApiError(400, message, "invalid_value", param)


def shutting_down() -> ApiError:
    """The server ends before it can answer."""
    return ApiError(503, "The server is shutting down; try again in a moment.", "shutting_down", retry_after=5)
