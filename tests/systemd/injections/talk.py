"""The daemon that has much to say before it starts: a large message, and a traceback."""

import sys

from nvr_backup import cli
from nvr_backup.service import Service
from nvr_backup.settings import Settings

real = Service.run


async def run(self: Service, settings: Settings) -> None:
    self._log.warning("large", text="\N{GRINNING FACE}" * 65_000, camera="Yard")
    try:
        raise RuntimeError("a failure\nof two lines")
    except RuntimeError:
        self._log.exception("broken", camera="Porch")
    await real(self, settings)


Service.run = run  # type: ignore[method-assign]
sys.argv[0] = "nvr-backup"
cli.main()
