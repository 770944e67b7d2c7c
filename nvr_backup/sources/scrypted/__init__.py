"""Scrypted as a source of clips: login, guarded RPC link, listings and bodies, each in its module.

`open_source` makes a `ports.ClipSource` from `ScryptedSettings`. Facts about the server are from
the project's notes on the wire protocol, observed on Scrypted 0.144.2 with scrypted-sdk 0.1.1. It
must import nothing of the core above the ports.
"""

from __future__ import annotations

from nvr_backup.sources.scrypted.settings import ScryptedSettings
from nvr_backup.sources.scrypted.source import open_source

__all__ = ["ScryptedSettings", "open_source"]
