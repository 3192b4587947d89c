"""Stripe's refusals: a status, and a body that says which parameter was wrong (docs.stripe.com/api/errors)."""

from collections.abc import Mapping
from typing import Any

DOCS = "https://stripe.com/docs/error-codes/"


class ApiError(Exception):
    """A request that is refused with `status`; `body` is the JSON of the answer, `headers` go with it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        type: str = "invalid_request_error",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        error: dict[str, Any] = {"code": code, "doc_url": code and DOCS + code.replace("_", "-"), "message": message}
        error |= {"param": param, "type": type}
        self.body = {"error": {key: value for key, value in error.items() if value is not None}}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ApiError) and self._whole() == other._whole()

    def __hash__(self) -> int:
        return hash(self.args)

    def _whole(self) -> tuple[object, ...]:
        return self.status, self.body, self.headers


def missing(name: str, id: str, *, status: int = 404, param: str = "id") -> ApiError:
    """Nothing has this id."""
    return ApiError(status, f"No such {name}: '{id}'", code="resource_missing", param=param)


def invalid(message: str, param: str, code: str | None = None) -> ApiError:
    """A parameter that Stripe does not take."""
    return ApiError(400, message, code=code, param=param)


def no_such_url(method: str, path: str) -> ApiError:
    """A path that the API does not have, or this simulator of it."""
    return ApiError(404, f"Unrecognized request URL ({method}: {path}).")


def unauthorized(key: str | None) -> ApiError:
    """No key, or one that is not ours."""
    if not key:
        return ApiError(
            401, "You did not provide an API key. Provide it as a bearer token in the Authorization header."
        )
    return ApiError(401, f"Invalid API Key provided: {'*' * max(len(key) - 4, 0)}{key[-4:]}")
