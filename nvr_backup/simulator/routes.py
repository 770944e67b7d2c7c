"""The HTTP side of a simulated NVR: who may come in, logins, and which clip a path means.

Two sites: the server's own, and another origin in the part of a vendor's cloud. A path that no
real server has must never answer here, but for the control surface, which is added elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

from aiohttp import hdrs, web

from nvr_backup.simulator.bodies import serve_clip, small_body
from nvr_backup.simulator.catalogue import CameraState, SimClip
from nvr_backup.simulator.login import COOKIE, InvalidToken, Shown
from nvr_backup.simulator.rpc import FFMPEG_INPUT, ffmpeg_input
from nvr_backup.simulator.settings import NVR_PLUGIN
from nvr_backup.simulator.state import NvrState

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

PLUGIN_ID = r"{plugin:(?:@[^/]+/)?[^/@]+}"
"""A route's variable for a plugin's id, which may hold a slash."""


class Routes:
    """Answers for the server and for the other origin."""

    def __init__(self, state: NvrState) -> None:
        self._state = state

    def add_to(self, app: web.Application) -> None:
        """The server's own paths."""
        app.router.add_get("/login", self._get_login)
        app.router.add_post("/login", self._post_login)
        app.router.add_get("/endpoint/8/public/{name}", self._public_file)
        app.router.add_get("/endpoint/8/{name}", self.guarded(self._published))
        app.router.add_get(
            f"/endpoint/{PLUGIN_ID}/clips/{{native_id}}/{{serial:\\d+}}.{{extension}}",
            self.guarded(self._plugin_clip),
        )
        app.router.add_get(
            f"/endpoint/{NVR_PLUGIN}/clip/{{device_id}}/{{name}}", self.guarded(self._nvr_clip)
        )
        app.router.add_route("*", "/endpoint/{rest:.*}", self.guarded(_not_found))

    def add_other_origin_to(self, app: web.Application) -> None:
        """The other origin's paths."""
        app.router.add_get("/media/{native_id}/{serial:\\d+}.{extension}", self._other_origin_clip)

    def _shown(self, request: web.Request) -> Shown:
        return Shown(
            request.headers.get(hdrs.AUTHORIZATION),
            request.query.get("scryptedToken"),
            request.cookies.get(COOKIE),
        )

    def guarded(self, handler: Handler) -> Handler:
        """`handler` behind the login: 401 for a request that shows nothing valid."""

        async def guarded(request: web.Request) -> web.StreamResponse:
            if not self._state.gate.admits(self._shown(request)):
                return self._unauthorized()
            return await handler(request)

        return guarded

    def _unauthorized(self) -> web.Response:
        self._state.unauthorized += 1
        return web.Response(status=401)

    async def _get_login(self, request: web.Request) -> web.Response:
        try:
            return web.json_response(self._state.gate.whoami(self._shown(request)))
        except InvalidToken:
            return self._unauthorized()

    async def _post_login(self, request: web.Request) -> web.Response:
        if failed := self._state.faults.take("login_error"):
            return web.Response(status=failed.get("status", 500))
        if self._state.faults.take("login_html"):
            return web.Response(text="<html>please wait</html>", content_type="text/html")
        try:
            body = await request.json()
        except (json.JSONDecodeError, UnicodeDecodeError):
            return web.Response(status=400)
        if not isinstance(body, dict):
            return web.Response(status=400)
        answer, cookie = self._state.gate.login(body)
        response = web.json_response(answer)
        if cookie is not None:
            response.set_cookie(COOKIE, cookie, max_age=86400, httponly=True, secure=True)
        return response

    async def _public_file(self, request: web.Request) -> web.StreamResponse:
        name, _, extension = request.match_info["name"].partition(".")
        owner = self._find_published(name, "file")
        if owner is None or owner[1].extension != extension:
            return web.Response(status=404)
        camera, clip, _ = owner
        return await serve_clip(request, self._state, camera, clip, body="file")

    async def _published(self, request: web.Request) -> web.StreamResponse:
        owner = self._find_published(request.match_info["name"], "buffer", "json")
        if owner is None:
            return web.Response(status=404)
        camera, clip, kind = owner
        if kind == "json":
            return small_body(ffmpeg_input(self._state, camera, clip), FFMPEG_INPUT)
        return await serve_clip(request, self._state, camera, clip, body="buffer")

    def _find_published(self, name: str, *kinds: str) -> tuple[CameraState, SimClip, str] | None:
        native_id, serial, kind = self._state.published.get(name, ("", 0, ""))
        clip = self._state.catalogue.by_serial(serial)
        if clip is None or kind not in kinds:
            return None
        try:
            return self._state.catalogue.camera(native_id), clip, kind
        except KeyError:
            return None

    async def _plugin_clip(self, request: web.Request) -> web.StreamResponse:
        owner = self._find_clip(request)
        if owner is None or owner[0].style.plugin_id != request.match_info["plugin"]:
            return web.Response(status=404)
        return await serve_clip(request, self._state, *owner)

    async def _nvr_clip(self, request: web.Request) -> web.StreamResponse:
        camera = self._state.catalogue.device(request.match_info["device_id"])
        if camera is None or camera.style.plugin_id != NVR_PLUGIN:
            return web.Response(status=404)
        clip = camera.find_nvr_name(request.match_info["name"])
        if clip is None:
            return web.Response(status=404)
        return await serve_clip(request, self._state, camera, clip)

    def _find_clip(self, request: web.Request) -> tuple[CameraState, SimClip] | None:
        clip = self._state.catalogue.by_serial(int(request.match_info["serial"]))
        native_id = request.match_info["native_id"]
        if clip is None or clip.native_id != native_id:
            return None
        owner = next((c for c in self._state.catalogue.cameras if c.native_id == native_id), None)
        return None if owner is None else (owner, clip)

    async def _other_origin_clip(self, request: web.Request) -> web.StreamResponse:
        """A vendor's cloud: signed addresses, no business with our tokens."""
        if hdrs.AUTHORIZATION in request.headers or "scryptedToken" in request.query:
            self._state.other_origin_authorizations += 1
        if request.query.get("signature") != self._state.signature(request.path):
            return web.Response(status=403)
        owner = self._find_clip(request)
        if owner is None:
            return web.Response(status=404)
        return await serve_clip(request, self._state, *owner, origin="other")


async def _not_found(_request: web.Request) -> web.Response:
    return web.Response(status=404)
