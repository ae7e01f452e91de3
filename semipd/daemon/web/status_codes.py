"""The HTTP status of each error code."""

from semipd.core.errors import SemipdError

_STATUS: dict[str, int] = {
    "invalid_api_key": 401,
    "operator_required": 403,
    "class_not_allowed": 403,
    "host_not_allowed": 403,
    "origin_not_allowed": 403,
    "model_not_found": 404,
    "not_found": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "body_too_large": 413,
    "unsupported_media_type": 415,
    "expectation_failed": 417,
    "rate_limited": 429,
    "headers_too_large": 431,
    "request_cancelled": 499,
    "internal_error": 500,
    "invalid_logits": 500,
    "engine_crashed": 500,
    "engine_failed": 503,
    "lane_failed": 500,
    "renderer_failed": 500,
    "overloaded": 503,
    "late": 503,
    "too_many_connections": 503,
    "draining": 503,
    "drain_deadline": 503,
    "engine_not_ready": 503,
    "engine_silent": 503,
    "engine_stalled": 503,
    "shutting_down": 503,
    "deadline_exceeded": 504,
}
"""Every other code is a bad request: 400."""


def status_of(error: SemipdError) -> int:
    return _STATUS.get(error.code, 400)


def is_clients_fault(code: str) -> bool:
    """Another server would have refused it too."""
    return _STATUS.get(code, 400) < 500
