"""The storage double as a process: prints its URL on the first line, ends on SIGTERM or SIGINT.

    python -m tests.support.gcs_double --bucket footage [--port N] [--keep digest] [--auth]
    python -m tests.support.gcs_double --bucket footage --discard --delay-ms 50

`--discard` is for benchmarks: a much cheaper server (see `discard`) that drops what it receives.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import ssl
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from tests.support.gcs_double.discard import DiscardingStore
from tests.support.gcs_double.server import GcsDouble


def main() -> None:
    parser = argparse.ArgumentParser(prog="gcs_double", description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--bucket", action="append", dest="buckets")
    parser.add_argument("--keep", choices=("all", "digest"), default="digest")
    parser.add_argument("--auth", action="store_true", help="require tokens")
    parser.add_argument("--service-account", type=Path, help="write a key file here")
    parser.add_argument("--page-size", type=int, default=1000)
    parser.add_argument("--delay-ms", type=float, default=0.0, help="before every answer")
    parser.add_argument("--discard", action="store_true", help="drop everything, cheaply")
    parser.add_argument("--checksum", action="store_true", help="--discard: compute true CRC32Cs")
    parser.add_argument("--tls-cert", type=Path)
    parser.add_argument("--tls-key", type=Path)
    arguments = parser.parse_args()
    buckets = tuple(arguments.buckets or ("footage",))
    tls: ssl.SSLContext | None = None
    if arguments.tls_cert is not None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(arguments.tls_cert, arguments.tls_key)
    delay_seconds = arguments.delay_ms / 1000
    if arguments.discard:
        store = DiscardingStore(
            checksum=arguments.checksum,
            delay_seconds=delay_seconds,
            tls=tls,
            port=arguments.port,
        )
        _run(_serve(store, None))
        return
    double = GcsDouble(
        buckets,
        auth=arguments.auth,
        keep=arguments.keep,
        page_size=arguments.page_size,
        delay_seconds=delay_seconds,
        tls=tls,
        port=arguments.port,
        receive_buffer=None,
    )
    _run(_serve(double, arguments.service_account))


async def _serve(double: GcsDouble | DiscardingStore, key_file: Path | None) -> None:
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with double:
        if key_file is not None and isinstance(double, GcsDouble):
            double.write_service_account(key_file)
        print(double.url, flush=True)
        await ended.wait()


def _run(serving: Coroutine[Any, Any, None]) -> None:
    try:
        import uvloop
    except ImportError:
        asyncio.run(serving)
    else:
        uvloop.run(serving)


if __name__ == "__main__":
    main()
