"""What the server said, and what follows from it.

The one place that knows Google's statuses, error bodies and object resources. It must never put
an address (a session's URI is a secret) or a body of unknown origin into a message uncut.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

import aiohttp

from nvr_backup.errors import Blocked, NvrBackupError, Suspect, Transient, Unfit
from nvr_backup.model import StoredObject

LOST_SESSION: Final = frozenset({404, 410, 499})
UNCLEAR: Final = frozenset({401, 408, 425, 429})
"""Statuses below 500 that say nothing lasting: ask again (401: with a fresh token)."""

ABOUT_THE_OBJECT: Final = frozenset({413, 414, 431})
"""Refusals that speak of this very request, so that other clips may well succeed."""

QUOTED_CHARS: Final = 240
_BODY_CHARS: Final = 4096
_PERMISSION: Final = re.compile(r"\bstorage\.[a-zA-Z]+\.[a-zA-Z]+\b")
_ADDRESS: Final = re.compile(r"(?:https?://|upload_id|/upload/)\S*", re.IGNORECASE)
_BEARER: Final = re.compile(r"\b(?:Bearer\s+|ya29\.)\S+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete HTTP answer; `parsed` is the body where gcloud-aio has parsed it already.

    Headers (a Location) and body stay out of every repr.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)
    parsed: object = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Unanswered:
    """No usable answer came, and why; it is unknown what the request did.

    `sent` is false when nothing of it can have reached the server; `answered` is true when the
    other side is alive all the same (its token server answered with an error, say).
    """

    reason: str
    sent: bool = True
    answered: bool = False


Outcome = Reply | Unanswered


def content(reply: Reply) -> dict[str, Any] | None:
    """The body as a JSON object, or None."""
    try:
        parsed = json.loads(reply.body) if reply.parsed is None else reply.parsed
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def raised(err: aiohttp.ClientResponseError) -> Outcome:
    """The answer that gcloud-aio has made an error of: its `message` is "reason: body".

    aiohttp raises the same class, without headers, for an answer that is not HTTP. Only the status
    of `err` may be shown: it knows the request's address and token too.
    """
    if err.headers is None:
        return Unanswered("an answer that is not HTTP")
    return Reply(err.status, err.headers, err.message.partition(": ")[2].encode())


def is_unclear(outcome: Outcome) -> bool:
    """Whether the same question may be answered otherwise a little later."""
    if isinstance(outcome, Unanswered):
        return True
    if outcome.status in UNCLEAR or outcome.status >= 500:
        return True
    return outcome.status == 403 and _reason(outcome).lower().endswith("ratelimitexceeded")


def may_have_acted(outcome: Outcome) -> bool:
    """Whether an unclear outcome leaves open that the request was carried out."""
    if isinstance(outcome, Unanswered):
        return outcome.sent
    return outcome.status not in {401, 403, 425, 429}


def is_taken(reply: Reply) -> bool:
    """Whether a creating request was refused because the key already holds an object.

    Without the permission to delete, Google may report an overwrite as that missing permission,
    and a bucket with a retention policy as the policy.
    """
    if reply.status == 412:
        return _reason(reply) != "orgPolicyConstraintFailed"
    if reply.status != 403:
        return False
    return "storage.objects.delete" in _text(reply) or _reason(reply) in {
        "retentionPolicyNotMet",
        "objectUnderActiveHold",
    }


def is_corrupt(reply: Reply) -> bool:
    """Whether the bytes that arrived did not have the checksum announced (some emulators: 412)."""
    return reply.status in {400, 412} and "crc32c" in _text(reply).lower()


def is_bucket_missing(reply: Reply) -> bool:
    """Whether a 404 speaks of the bucket and not of the object."""
    return reply.status == 404 and "bucket does not exist" in _text(reply).lower()


def retry_after(outcome: Outcome, now: datetime) -> float | None:
    """Seconds the server asks to be left alone (RFC 9110, 10.2.3), or None."""
    if isinstance(outcome, Unanswered):
        return None
    wish = outcome.headers.get("Retry-After", "").strip()
    if wish.isascii() and wish.isdigit():
        return float(wish)
    try:
        return max(0.0, (parsedate_to_datetime(wish) - now).total_seconds())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def persisted(reply: Reply) -> int | None:
    """How many bytes a session holds, by its 308; None when the header makes no sense."""
    span = reply.headers.get("Range")
    if span is None:
        return 0
    match = re.fullmatch(r"\s*bytes\s*[= ]\s*0-(\d{1,18})\s*", span)
    return int(match[1]) + 1 if match else None


def stored_object(resource: Mapping[str, Any], prefix: str) -> StoredObject | None:
    """An object resource of the JSON API as ours, its key without `prefix`; None if it is none."""
    try:
        name, size, generation = resource["name"], int(resource["size"]), resource["generation"]
        crc = resource.get("crc32c")
        metadata = resource.get("metadata") or {}
        return StoredObject(
            key=str(name).removeprefix(prefix),
            size=size,
            crc32c=None if crc is None else crc32c_value(crc),
            generation=str(generation),
            content_type=resource.get("contentType"),
            metadata={str(key): str(value) for key, value in metadata.items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def crc32c_text(value: int) -> str:
    """CRC32C as Google writes it: base64 of its 4 bytes, big-endian."""
    return base64.b64encode(struct.pack(">I", value)).decode()


def crc32c_value(text: str) -> int:
    """The reverse of `crc32c_text`; ValueError for anything else."""
    try:
        return int(struct.unpack(">I", base64.b64decode(text, validate=True))[0])
    except (struct.error, binascii.Error) as err:
        raise ValueError("not a CRC32C in base64") from err


def exhausted(
    outcome: Outcome, *, doing: str, host: str, answered: bool, wish: float | None
) -> NvrBackupError:
    """The error for a step that stayed unclear until its retry budget was used up."""
    if isinstance(outcome, Unanswered) and not answered:
        return Blocked(
            f"{doing}: {host} cannot be reached ({outcome.reason}).",
            hint="Check the network, the name server, the firewall and the store's endpoint.",
        )
    if isinstance(outcome, Reply) and outcome.status == 401:
        return refusal(outcome, doing=doing)
    return Transient(f"{doing}: {host} {_in_words(outcome)}, again and again.", retry_after=wish)


def refusal(reply: Reply, *, doing: str) -> NvrBackupError:
    """The error for an answer that another attempt would not change."""
    said = quoted(reply)
    if reply.status == 401:
        return Blocked(
            f"{doing}: the credentials are not accepted (401{said}).",
            hint="Check that credentials_file names a valid key that was not revoked.",
        )
    if reply.status == 403:
        missing = _PERMISSION.search(_text(reply))
        hint = (
            f"The key lacks the permission {missing[0]}: grant its account a role that has it on "
            "the bucket (Storage Object Creator to store, Storage Object Viewer to read, Storage "
            "Object User for everything)."
            if missing
            else "Check the account's roles on the bucket, and billing of the project."
        )
        return Blocked(f"{doing}: refused (403{said}).", hint=hint)
    if reply.status == 404:
        return Blocked(
            f"{doing}: there is no such bucket (404{said}).",
            hint="Check the bucket's name in the configuration, or create it.",
        )
    if reply.status == 400 and _reason(reply) != "required":
        # Front ends answer so to a request that was garbled on its way: once proves nothing.
        return Suspect(f"{doing}: the store finds the request malformed (400{said}).")
    if reply.status in ABOUT_THE_OBJECT:
        return Unfit(f"{doing}: the store will not take this ({reply.status}{said}).")
    return Blocked(
        f"{doing}: unexpected answer ({reply.status}{said}).",
        hint="Check that the endpoint is a Google Cloud Storage server, and the bucket's policies.",
    )


def quoted(reply: Reply) -> str:
    """What the server said in words, fit for a message: `: "..."`, or nothing."""
    text = _ADDRESS.sub("[address]", _BEARER.sub("[token]", " ".join(_text(reply).split())))
    if not text or text.startswith("<"):
        return ""
    return f': "{text[:QUOTED_CHARS]}"'


def _in_words(outcome: Outcome) -> str:
    if isinstance(outcome, Unanswered):
        return f"gave no usable answer ({outcome.reason})"
    return f"answered {outcome.status}{quoted(outcome)}"


def _error(reply: Reply) -> dict[str, Any]:
    error = (content(reply) or {}).get("error")
    return error if isinstance(error, dict) else {}


def _reason(reply: Reply) -> str:
    details = _error(reply).get("errors")
    if not isinstance(details, list) or not details or not isinstance(details[0], dict):
        return ""
    return str(details[0].get("reason", ""))


def _text(reply: Reply) -> str:
    message = _error(reply).get("message")
    return str(message or reply.body[:_BODY_CHARS].decode(errors="replace"))
