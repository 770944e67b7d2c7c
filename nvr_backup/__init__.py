"""nvr-backup: carries every finished clip of an NVR off-site."""

from typing import Final

__version__: Final = "0.1.0"
