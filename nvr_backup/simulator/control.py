"""The control surface under `/_simulator/`: arm faults, change things, ask for the truth, by HTTP.

For tests and benchmarks that run the simulator as a process of its own. No real server has it; it
asks for no login, so the simulator must never listen on anything but a loopback address unless
whoever starts it wants that.

    GET  /_simulator/state       url, fingerprint, links, restarts, cameras, fault counts, for how
                                 long how many clips were read at once (fault "overload"), ...
    GET  /_simulator/oracle      every clip as it truly is (?digests=0: without reading a byte,
                                 ?since_ms=N: those that start then or later)
    GET  /_simulator/served      the served log (?since=N: without the first N)
    GET  /_simulator/calls       the RPC calls
    GET  /_simulator/faults      every fault there is; which are armed, which happened
    POST /_simulator/faults      {"name", "times", "camera", "clip", "skip", ...options}
    POST /_simulator/disarm      {"name"} or {}
    POST /_simulator/release     end stalls and hangs
    POST /_simulator/clips       {"camera", "count", "seconds", "size", "start_ms", "content"}
    POST /_simulator/many        {"camera", "count", "hours"}: clips over the past
    POST /_simulator/grow        {"camera", "clip", "seconds", "size"}
    POST /_simulator/remove-clip {"camera", "clip"}
    POST /_simulator/rename      {"camera", "name"}
    POST /_simulator/remove      {"camera"}
    POST /_simulator/re-add      {"camera": nativeId}
    POST /_simulator/restart     {"down": seconds}; answers first
    POST /_simulator/expire      Bearer and query tokens die
    POST /_simulator/drop-links  RPC links break
    POST /_simulator/password    {"password"}: another one from now on

A wrong request is answered with 400 and its reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from aiohttp import web

from nvr_backup.model import from_ms
from nvr_backup.simulator.catalogue import CameraState, SimClip
from nvr_backup.simulator.faults import FAULTS

if TYPE_CHECKING:
    from nvr_backup.simulator.server import Simulator

Answer = Callable[[dict[str, Any]], Any]


def add_control_routes(app: web.Application, nvr: Simulator) -> None:
    """Let `app` answer for `nvr` under `/_simulator/`."""
    control = _Control(nvr)
    for name, ask in control.questions().items():
        app.router.add_get(f"/_simulator/{name}", _answering(ask))
    for name, do in control.orders().items():
        app.router.add_post(f"/_simulator/{name}", _answering(do))


def _answering(answer: Answer) -> Callable[[web.Request], Any]:
    async def handle(request: web.Request) -> web.Response:
        try:
            if request.method == "POST":
                body = await request.json() if request.can_read_body else {}
            else:
                body = dict(request.query)
            return web.json_response(answer(body))
        except KeyError as err:
            return web.json_response({"error": f"there is no {err}"}, status=400)
        except (ValueError, TypeError, AttributeError) as err:
            return web.json_response({"error": str(err)}, status=400)

    return handle


def _told(clip: SimClip) -> dict[str, Any]:
    return {
        "id": clip.id,
        "start_ms": clip.start_ms,
        "end_ms": clip.end_ms,
        "size": clip.content.size,
    }


class _Control:
    def __init__(self, nvr: Simulator) -> None:
        self._nvr = nvr
        self._removed: dict[str, CameraState] = {}

    def questions(self) -> dict[str, Answer]:
        return {
            "state": self._state,
            "oracle": self._oracle,
            "served": self._served,
            "calls": lambda _q: [asdict(call) for call in self._nvr.calls],
            "faults": self._faults,
        }

    def orders(self) -> dict[str, Answer]:
        return {
            "faults": self._arm,
            "disarm": lambda body: self._nvr.faults.disarm(body.get("name")),
            "release": lambda _body: self._nvr.faults.release(),
            "clips": self._add_clips,
            "many": self._add_many,
            "grow": self._grow,
            "remove-clip": self._remove_clip,
            "rename": lambda body: _name(
                self._nvr.catalogue.rename(body["camera"], str(body["name"]))
            ),
            "remove": self._remove,
            "re-add": self._re_add,
            "restart": lambda body: self._nvr.restart_soon(float(body.get("down", 0))),
            "expire": lambda _body: self._nvr.expire_tokens(),
            "password": lambda body: self._nvr.gate.change_password(str(body["password"])),
            "drop-links": lambda _body: self._nvr.drop_links(),
        }

    # -- questions -----------------------------------------------------------------------------

    def _state(self, _query: dict[str, Any]) -> Any:
        nvr = self._nvr
        return {
            "url": nvr.url,
            "fingerprint": nvr.fingerprint,
            "links": nvr.links,
            "restarts": nvr.restarts,
            "logins": dict(nvr.gate.attempts),
            "administrators_created": nvr.gate.administrators_created,
            "other_origin_authorizations": nvr.state.other_origin_authorizations,
            "served": len(nvr.state.served),
            "reading_seconds": dict(nvr.state.disk.spent),
            "cameras": [_name(c) | {"clips": len(c.clips)} for c in nvr.catalogue.cameras],
        }

    def _oracle(self, query: dict[str, Any]) -> Any:
        digests = query.get("digests", "1") != "0"
        since_ms = int(query.get("since_ms", 0))
        return [asdict(entry) for entry in self._nvr.oracle(digests=digests, since_ms=since_ms)]

    def _served(self, query: dict[str, Any]) -> Any:
        return [asdict(body) for body in self._nvr.served[int(query.get("since", 0)) :]]

    def _faults(self, _query: dict[str, Any]) -> Any:
        return {
            "known": dict(FAULTS),
            "happened": self._nvr.faults.counts(),
            "unexercised": self._nvr.faults.unexercised(),
        }

    # -- orders --------------------------------------------------------------------------------

    def _arm(self, body: dict[str, Any]) -> Any:
        self._nvr.faults.arm(str(body.pop("name")), **body)
        return {"armed": True}

    def _add_clips(self, body: dict[str, Any]) -> Any:
        start_ms = body.get("start_ms")
        return [
            _told(
                self._nvr.catalogue.add_clip(
                    body["camera"],
                    start=None if start_ms is None else from_ms(int(start_ms)),
                    seconds=body.get("seconds"),
                    size=body.get("size"),
                    content=body.get("content"),
                )
            )
            for _ in range(int(body.get("count", 1)))
        ]

    def _add_many(self, body: dict[str, Any]) -> Any:
        within = timedelta(hours=float(body.get("hours", 24)))
        self._nvr.catalogue.add_many(body["camera"], int(body["count"]), within=within)
        return {"clips": len(self._nvr.catalogue.clips(body["camera"]))}

    def _clip(self, body: dict[str, Any]) -> SimClip:
        for clip in self._nvr.catalogue.clips(body["camera"]):
            if clip.id == body["clip"]:
                return clip
        raise KeyError(body["clip"])

    def _grow(self, body: dict[str, Any]) -> Any:
        grown = self._nvr.catalogue.grow_clip(
            self._clip(body), seconds=body.get("seconds"), size=body.get("size")
        )
        return _told(grown)

    def _remove_clip(self, body: dict[str, Any]) -> Any:
        self._nvr.catalogue.remove_clip(self._clip(body))

    def _remove(self, body: dict[str, Any]) -> Any:
        camera = self._nvr.catalogue.remove(body["camera"])
        self._removed[camera.native_id] = camera
        return _name(camera)

    def _re_add(self, body: dict[str, Any]) -> Any:
        return _name(self._nvr.catalogue.re_add(self._removed.pop(body["camera"])))


def _name(camera: CameraState) -> dict[str, Any]:
    return {"name": camera.name, "device_id": camera.device_id, "native_id": camera.native_id}
