"""The control surface of the storage double when it runs as a process: paths under /_double/.

    GET    /_double/objects        [{bucket, name, size, crc32c, sha256, generation, metadata}]
    POST   /_double/objects        {"name", "text", "metadata"}: places an object, as somebody else
    POST   /_double/harm           {"name", "at"}: one byte of it is another, unnoticed by the store
    GET    /_double/journal        the requests seen so far; ?since=N: without the first N
    GET    /_double/sessions       unfinished uploads that could still be finalised: [{key, bytes}]
    GET    /_double/faults         the script with counts; POST adds one; DELETE clears it
    POST   /_double/release        end all stalls
    POST   /_double/expire-tokens  all tokens are refused from now on
    POST   /_double/lose-sessions  all unfinished uploads are gone
    POST   /_double/buckets        {"name"}: makes a bucket; DELETE removes one with all it holds
    POST   /_double/permissions    {"permissions"}: what every account may do from now on
    POST   /_double/service-account {"name", "permissions"} → the content of a new key file

A fault is `{"where": "chunk", "what": "Status", "with": {"code": 503}, "times": 1, "nth": 2}`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, get_args

from aiohttp import web

from tests.support.gcs_double.auth import PERMISSIONS
from tests.support.gcs_double.faults import Fault, What

if TYPE_CHECKING:
    from tests.support.gcs_double.server import GcsDouble

_FAULTS: dict[str, Any] = {kind.__name__: kind for kind in get_args(What)}


async def answer(double: GcsDouble, request: web.BaseRequest, path: str) -> web.Response:
    """Serve a request of the test itself; it appears in no journal and meets no fault."""
    body = await request.read()
    try:
        content = json.loads(body) if body else dict(request.query)
        result = _carry_out(double, request.method, path.removeprefix("/_double/"), content)
    except (KeyError, TypeError, ValueError) as err:
        return web.json_response({"error": repr(err)}, status=400)
    return web.json_response(result)


def _carry_out(double: GcsDouble, method: str, name: str, content: dict[str, Any]) -> Any:
    match method, name:
        case "GET", "objects":
            return _objects(double)
        case "POST", "objects":
            bucket = content.get("bucket", next(iter(double.objects)))
            data = str(content["text"]).encode()
            double.put(bucket, content["name"], data, metadata=content.get("metadata"))
            return {}
        case "POST", "harm":
            bucket = content.get("bucket", next(iter(double.objects)))
            double.objects[bucket][content["name"]].harm(int(content.get("at", 0)))
            return {}
        case "GET", "journal":
            since = int(content.get("since", 0))
            return [asdict(entry) for entry in double.requests if entry.number > since]
        case "GET", "sessions":
            return [
                {"key": session.wanted.name, "bytes": session.content.size}
                for session in double.sessions
                if session.done is None and session.lost is None
            ]
        case "GET", "faults":
            return [_described(fault) for fault in double.faults.all()]
        case "POST", "faults":
            what = _FAULTS[content["what"]](**content.get("with", {}))
            limits = {k: content[k] for k in ("times", "nth", "key") if k in content}
            return _described(double.faults.add(content["where"], what, **limits))
        case "DELETE", "faults":
            double.faults.clear()
            return []
        case "POST", "release":
            double.faults.release()
            return {}
        case "POST", "expire-tokens":
            return {"tokens": double.expire_tokens()}
        case "POST", "lose-sessions":
            return {"sessions": double.lose_sessions(content.get("status", 410))}
        case "POST", "buckets":
            double.objects.setdefault(str(content["name"]), {})
            return {}
        case "DELETE", "buckets":
            del double.objects[str(content["name"])]
            return {}
        case "POST", "permissions":
            for account in double.authority.accounts.values():
                account.permissions = frozenset(content["permissions"]) & PERMISSIONS
            return {}
        case "POST", "service-account":
            permissions = frozenset(content.get("permissions", PERMISSIONS))
            _, key_file = double.authority.create(
                double.token_uri, name=content.get("name", "backup"), permissions=permissions
            )
            return key_file
    raise ValueError(f"no such control: {method} {name}")


def _objects(double: GcsDouble) -> list[dict[str, Any]]:
    return [
        {
            "bucket": bucket,
            "name": held.name,
            "size": held.size,
            "crc32c": held.crc32c,
            "sha256": held.sha256,
            "generation": held.generation,
            "content_type": held.content_type,
            "metadata": held.metadata,
        }
        for bucket, objects in double.objects.items()
        for held in objects.values()
    ]


def _described(fault: Fault) -> dict[str, Any]:
    return {
        "where": fault.where,
        "what": repr(fault.what),
        "times": fault.times,
        "nth": fault.nth,
        "key": fault.key,
        "seen": fault.seen,
        "happened": fault.happened,
        "used_up": fault.used_up,
    }
