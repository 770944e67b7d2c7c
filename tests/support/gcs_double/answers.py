"""Google's answers: errors in the JSON API's format, object resources, partial responses.

The texts follow the documentation (cloud.google.com/storage/docs/json_api/v1/status-codes) and
error bodies published by users of the service.
"""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

JSON = "application/json; charset=UTF-8"

REASONS = {
    400: "invalid",
    401: "authError",
    403: "forbidden",
    404: "notFound",
    408: "requestTimeout",
    410: "uploadGone",
    411: "lengthRequired",
    412: "conditionNotMet",
    413: "uploadTooLarge",
    416: "requestedRangeNotSatisfiable",
    429: "rateLimitExceeded",
    500: "backendError",
    502: "badGateway",
    503: "backendError",
    504: "gatewayTimeout",
}


class Refused(Exception):
    """The request breaks a rule of the service; carries the answer that says so."""

    def __init__(self, response: web.Response) -> None:
        super().__init__(f"refused with {response.status}")
        self.response = response


class HangUp(Exception):
    """The connection is gone, or is to be reset; nothing is answered."""


def json_answer(content: Any, *, status: int = 200) -> web.Response:
    body = json.dumps(content, ensure_ascii=False, indent=2).encode()
    return web.Response(status=status, body=body, headers={"Content-Type": JSON})


def error_answer(
    status: int,
    message: str,
    *,
    reason: str = "",
    location: tuple[str, str] | None = None,
    headers: dict[str, str] | None = None,
) -> web.Response:
    """An error of the JSON API; `location` is (locationType, location)."""
    detail = {
        "message": message,
        "domain": "global",
        "reason": reason or REASONS.get(status, "backendError"),
    }
    if location is not None:
        detail["locationType"], detail["location"] = location
    answer = json_answer(
        {"error": {"code": status, "message": message, "errors": [detail]}}, status=status
    )
    answer.headers.update(headers or {})
    return answer


def refuse(
    status: int,
    message: str,
    *,
    reason: str = "",
    location: tuple[str, str] | None = None,
    headers: dict[str, str] | None = None,
) -> Refused:
    return Refused(error_answer(status, message, reason=reason, location=location, headers=headers))


def invalid(message: str) -> Refused:
    return refuse(400, message)


def no_bucket() -> Refused:
    return refuse(404, "The specified bucket does not exist.", reason="notFound")


def no_object(bucket: str, name: str) -> Refused:
    return refuse(404, f"No such object: {bucket}/{name}", reason="notFound")


def condition_not_met() -> Refused:
    return refuse(
        412,
        "At least one of the pre-conditions you specified did not hold.",
        reason="conditionNotMet",
        location=("header", "If-Match"),
    )


def forbidden(who: str, permission: str) -> Refused:
    """403 that names the permission, as Google words it."""
    thing = "bucket" if permission.startswith("storage.buckets.") else "object"
    if permission == "storage.objects.list":
        thing = "bucket"
    return refuse(
        403,
        f"{who} does not have {permission} access to the Google Cloud Storage {thing}. "
        f"Permission '{permission}' denied on resource (or it may not exist).",
        reason="forbidden",
    )


def plain_answer(status: int, text: str, content_type: str = "text/plain") -> web.Response:
    return web.Response(status=status, text=text, content_type=content_type, charset="utf-8")


def select_fields(content: Any, fields: str) -> Any:
    """The parts of `content` that a `fields` parameter names: `items(name,size),nextPageToken`."""
    tree, rest = _parse_fields(fields)
    if rest:
        raise invalid(f"Invalid field selection {fields}")
    return _pick(content, tree)


def _parse_fields(text: str) -> tuple[dict[str, Any], str]:
    tree: dict[str, Any] = {}
    while text and text[0] != ")":
        end = next((i for i, c in enumerate(text) if c in ",/()"), len(text))
        name, text = text[:end], text[end:]
        if not name:
            raise invalid("Invalid field selection")
        branch: dict[str, Any] = tree.setdefault(name, {})
        if text[:1] == "/":
            end = next((i for i, c in enumerate(text) if c in ",)"), len(text))
            inner, _ = _parse_fields(text[1:end])
            branch.update(inner)
            text = text[end:]
        elif text[:1] == "(":
            inner, text = _parse_fields(text[1:])
            if text[:1] != ")":
                raise invalid("Invalid field selection")
            branch.update(inner)
            text = text[1:]
        text = text.removeprefix(",")
    return tree, text


def _pick(content: Any, tree: dict[str, Any]) -> Any:
    if not tree or "*" in tree:
        return content
    if isinstance(content, list):
        return [_pick(entry, tree) for entry in content]
    if not isinstance(content, dict):
        return content
    return {name: _pick(content[name], tree[name]) for name in tree if name in content}
