"""The real fake-gcs-server starts, holds an object and ends; skipped where it is not installed."""

from __future__ import annotations

import os

import aiohttp
import pytest

from tests.support.fake_gcs_server import binary, fake_gcs_server

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(binary() is None, reason="no fake-gcs-server binary for this platform"),
]


@pytest.mark.parametrize("backend", ["memory", "filesystem"])
async def test_an_object_goes_in_and_comes_out(backend: str) -> None:
    async with fake_gcs_server("clips", backend=backend) as server:  # type: ignore[arg-type]
        async with aiohttp.ClientSession() as session:
            begin = f"{server.url}/upload/storage/v1/b/clips/o?uploadType=resumable&name=a"
            async with session.post(begin) as answer:
                location = answer.headers["Location"]
            assert location.startswith(server.url)
            headers = {"Content-Range": "bytes 0-4/5"}
            async with session.put(location, data=b"bytes", headers=headers) as answer:
                assert answer.status == 200
            async with session.get(f"{server.url}/storage/v1/b/clips/o/a?alt=media") as answer:
                assert await answer.read() == b"bytes"
        os.kill(server.pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)
