"""The daemon, which looks again soon after a failure, and renews its status often."""

import sys

from nvr_backup import cli, connections, vitals

connections.FIRST_PROBE_SECONDS = 0.5  # type: ignore[misc]
connections.SLOWEST_PROBE_SECONDS = 1.0  # type: ignore[misc]
vitals.STATUS_SECONDS = 0.3  # type: ignore[misc]
sys.argv[0] = "nvr-backup"
cli.main()
