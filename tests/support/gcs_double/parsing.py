"""What upload requests say, read as strictly as documented: ranges, metadata, multipart bodies.

Everything here is a function of the request alone; `uploads` decides what then happens.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from typing import Any

from tests.support.gcs_double.answers import invalid, refuse
from tests.support.gcs_double.auth import Caller
from tests.support.gcs_double.held import Wanted

MOST_NAME = 1024
"""Bytes of an object's name in UTF-8."""

MOST_METADATA = 8 * 1024
"""Bytes of all custom metadata together, keys and values."""

_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")
_KNOWN = {
    "name", "contentType", "metadata", "crc32c", "md5Hash", "bucket", "size", "cacheControl",
    "contentDisposition", "contentEncoding", "contentLanguage", "customTime", "storageClass",
    "kind", "acl", "retention", "timeCreated", "updated",
}  # fmt: skip


class ContentRange:
    """`bytes a-b/T`, `bytes a-b/*`, `bytes */T`, `bytes */*`; a missing one is the whole object."""

    def __init__(self, header: str | None, length: int | None) -> None:
        self.first: int | None = 0
        self.last: int | None = None if length is None else length - 1
        self.total: int | None = length
        self.whole = header is None
        if header is None:
            return
        match = _RANGE.fullmatch(header.strip())
        if match is None:
            raise invalid("Failed to parse Content-Range header.")
        self.first, self.last, self.total = (
            int(text) if text not in (None, "*") else None for text in match.groups()
        )
        if self.first is not None and self.last is not None:
            if self.last < self.first or (self.total is not None and self.last >= self.total):
                raise invalid("Failed to parse Content-Range header.")
            if length is not None and length != self.last - self.first + 1:
                raise invalid("Content-Length does not match the Content-Range header.")
        elif length:
            raise invalid("A request without a byte range must have an empty body.")

    @property
    def is_query(self) -> bool:
        """Asks only; does not send and does not end anything."""
        return not self.whole and self.first is None and self.total is None

    @property
    def is_last(self) -> bool:
        """Ends the object."""
        if self.whole:
            return True
        if self.first is None:
            return self.total is not None
        return self.last is not None and self.total == self.last + 1


def json_part(body: bytes | None, content_type: str) -> dict[str, Any]:
    """The object's metadata as the client sent it; Refused 400 for anything but a JSON object."""
    if body is None:
        raise refuse(413, "The metadata is too large.")
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise invalid("The metadata must have the content type application/json.")
    try:
        content = json.loads(body)
    except ValueError as err:
        raise refuse(400, "Parse Error", reason="parseError") from err
    if not isinstance(content, dict):
        raise refuse(400, "Parse Error", reason="parseError")
    return content


def split_related(body: bytes, content_type: str) -> tuple[dict[str, Any], str, bytes]:
    """The JSON part, the media's type and the media of a multipart/related body (RFC 2387)."""
    kind, _, parameters = content_type.partition(";")
    match = re.search(r'boundary=(?:"([^"]+)"|([^;\s]+))', parameters)
    if kind.strip().lower() != "multipart/related" or match is None:
        raise invalid("Multipart uploads must be multipart/related with a boundary.")
    mark = b"--" + (match.group(1) or match.group(2)).encode()
    if not body.startswith(mark + b"\r\n"):
        raise invalid("Malformed multipart body.")
    end = body.rfind(b"\r\n" + mark + b"--")
    between = body.find(b"\r\n" + mark + b"\r\n")
    if end < 0 or between < 0 or body[end + 4 + len(mark) :].strip(b"\r\n -"):
        raise invalid("Malformed multipart body.")
    first = body[len(mark) + 2 : between]
    second = body[between + len(mark) + 4 : end]
    if b"\r\n" + mark in second:
        raise invalid("Multipart uploads must have exactly two parts.")
    json_type, content = _headers_and_rest(first)
    media_type, media = _headers_and_rest(second)
    return json_part(content, json_type), media_type, media


def _headers_and_rest(part: bytes) -> tuple[str, bytes]:
    if part.startswith(b"\r\n"):
        return "", part[2:]
    head, separator, rest = part.partition(b"\r\n\r\n")
    if not separator:
        raise invalid("Malformed multipart body.")
    for line in head.decode("latin-1").split("\r\n"):
        name, _, value = line.partition(":")
        if name.strip().lower() == "content-type":
            return value.strip(), rest
    return "", rest


def parse_wanted(
    bucket: str,
    query: Mapping[str, str],
    content: dict[str, Any],
    media_type: str | None,
    caller: Caller,
) -> Wanted:
    """Validate what the client asks for; query parameters and metadata may both name the object."""
    if unknown := set(content) - _KNOWN:
        raise invalid(f"Unknown fields in the object's metadata: {sorted(unknown)}")
    name = content.get("name", query.get("name"))
    if not name:
        raise refuse(400, "Required", reason="required", location=("parameter", "name"))
    if "name" in query and query["name"] != name:
        raise invalid(f"Value '{name}' in content does not agree with value '{query['name']}'.")
    _check_name(name)
    if content.get("bucket", bucket) != bucket:
        raise invalid("The bucket in the metadata is not the one in the path.")
    metadata = content.get("metadata", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise invalid("Invalid value for: metadata must map strings to strings")
    if sum(len((k + v).encode()) for k, v in metadata.items()) > MOST_METADATA:
        raise invalid("The metadata is larger than 8 KiB.")
    content_type = content.get("contentType", media_type or "application/octet-stream")
    if not isinstance(content_type, str):
        raise invalid("Invalid value for: contentType")
    generation = query.get("ifGenerationMatch")
    return Wanted(
        bucket=bucket,
        name=name,
        content_type=content_type,
        metadata=dict(metadata),
        if_generation_match=None if generation is None else integer(generation),
        crc32c=_digest(content.get("crc32c"), 4, "crc32c"),
        md5=_digest(content.get("md5Hash"), 16, "md5Hash"),
        may_overwrite=caller.may("storage.objects.delete"),
        who=caller.who,
    )


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise invalid("Invalid value for: name")
    try:
        encoded = name.encode()
    except UnicodeEncodeError as err:
        raise invalid("The object name is not valid UTF-8.") from err
    if (
        len(encoded) > MOST_NAME
        or name in (".", "..")
        or "\r" in name
        or "\n" in name
        or name.startswith(".well-known/acme-challenge/")
    ):
        raise invalid(f"Disallowed unicode characters or length in object name '{name[:64]}'")


def integer(text: str) -> int:
    """A parameter's number; Refused 400 for anything else."""
    if not re.fullmatch(r"\d{1,19}", text):
        raise invalid(f"Invalid long value: '{text}'.")
    return int(text)


def _digest(value: object, length: int, name: str) -> str | None:
    if value is None:
        return None
    try:
        if isinstance(value, str) and len(base64.b64decode(value, validate=True)) == length:
            return value
    except binascii.Error:
        pass
    raise invalid(f"Invalid value for: {name} must be the base64 of {length} bytes")


def goog_hashes(headers: list[str]) -> dict[str, str]:
    """`crc32c=…,md5=…`, in one header or in several."""
    stated: dict[str, str] = {}
    for entry in ",".join(headers).split(","):
        if entry.strip():
            name, _, value = entry.strip().partition("=")
            if name not in ("crc32c", "md5"):
                raise invalid(f"Unknown hash '{name}' in x-goog-hash.")
            stated[name] = _digest(value, 4 if name == "crc32c" else 16, name) or ""
    return stated
