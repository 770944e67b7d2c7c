"""A plain web server with the simulated NVR's clips: the source for programs that know no NVR.

It serves the same bytes by the same means (the simulator's generator, aiohttp, 256 KiB at a time)
as the simulated NVR, but without any login: `/length/` with Content-Length, `/chunked/` without.
`/length/` itself is an index page such as nginx makes. The first line printed is its URL.
"""

from __future__ import annotations

import argparse
import asyncio
import signal

from aiohttp import web

from nvr_backup.simulator.media import ClipContent, clip_content

WRITE_BYTES = 256 * 1024
"""As `SimulatorSettings.write_size`."""


class Shelf:
    """`count` clips of `size` bytes each, called clip-0.mp4 and so on."""

    def __init__(self, count: int, size: int) -> None:
        self._clips = {
            f"clip-{number}.mp4": clip_content(f"plain/{number}", "synthetic", size)
            for number in range(count)
        }

    async def index(self, _request: web.Request) -> web.Response:
        """The names, as links."""
        links = "\n".join(f'<a href="{name}">{name}</a>' for name in self._clips)
        page = f"<html><head><title>Index</title></head><body><pre>\n{links}\n</pre></body></html>"
        return web.Response(text=page, content_type="text/html")

    async def clip(self, request: web.Request) -> web.StreamResponse:
        """One clip, whole."""
        content: ClipContent | None = self._clips.get(request.match_info["name"])
        if content is None:
            raise web.HTTPNotFound
        response = web.StreamResponse(
            headers={
                "Content-Type": content.content_type,
                "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT",
            }
        )
        if request.match_info["way"] == "chunked":
            response.enable_chunked_encoding()
        else:
            response.content_length = content.size
        await response.prepare(request)
        if request.method != "HEAD":
            for piece in content.pieces(longest=WRITE_BYTES):
                await response.write(piece)
        return response


async def _serve(shelf: Shelf) -> None:
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    app = web.Application()
    app.router.add_get("/length/", shelf.index)
    app.router.add_get("/{way:length|chunked}/{name}", shelf.clip)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
        await ended.wait()
    finally:
        await runner.cleanup()


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--size", type=int, required=True, help="bytes")
    told = parser.parse_args()
    asyncio.run(_serve(Shelf(told.count, told.size)))


if __name__ == "__main__":
    main()
