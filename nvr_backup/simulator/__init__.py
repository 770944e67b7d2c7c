"""A simulated NVR that speaks Scrypted's real wire protocol: for the demo, tests and benchmarks.

It is a small program of its own, started in-process or with `python -m nvr_backup.simulator`, and
it must never be imported by the daemon: only the commands `demo` and `simulate` use it.

In a test::

    async with Simulator(SimulatorSettings(cameras=(SimCamera("Porch", style="file"),))) as nvr:
        nvr.url                      # "http://127.0.0.1:PORT", the same after restart()
        nvr.fingerprint              # SHA-256 (hex) of the certificate's DER with tls=True, else ""
        nvr.settings.username, nvr.settings.password
        nvr.gate.user_token          # the user's long-lived token
        nvr.gate.administrators_created    # must stay []

        clip = nvr.catalogue.add_clip("Porch")                 # ends now; start=, seconds=, size=
        clip = nvr.catalogue.grow_clip(clip, seconds=5)
        nvr.catalogue.add_many("Porch", 20_000)
        nvr.catalogue.remove_clip(clip)
        nvr.catalogue.rename("Porch", "Front door")
        gone = nvr.catalogue.remove("Front door"); nvr.catalogue.re_add(gone)
        nvr.catalogue.cameras, nvr.catalogue.clips("porch")    # by nativeId, device id or name
        clip.content.read()          # its true bytes; .content.digest() -> size, sha256, crc32c
        nvr.oracle()                 # every clip with its true size, sha256 and crc32c

        nvr.faults.arm("cut_body", times=1, camera="Porch", at_bytes=1000)   # names: `FAULTS`
        await nvr.faults.wait_happened("cut_body")
        assert nvr.faults.happened("cut_body") == 1 and not nvr.faults.unexercised()
        nvr.faults.release()         # ends stalls and hangs

        nvr.served                   # every clip body sent: camera, clip id, offset, sent,
                                     # complete, sha256, crc32c, authorization shown or not, ...
        nvr.calls                    # every RPC call: (method, camera's device id or "")
        nvr.links                    # how many RPC links are up
        nvr.gate.attempts            # logins by outcome: success, wrong password, ...
        nvr.state.unauthorized       # requests answered with 401
        nvr.state.other_origin_authorizations    # tokens shown to the other origin: must stay 0
        await nvr.restart(down=0)    # links drop, tokens die, plugins forget; `down` is in seconds
        nvr.expire_tokens(); nvr.drop_links()

`SimulatorSettings(clock=...)` does not exist: the clock is `Simulator(settings, clock=...)`.
As a process: `await serve(settings, host=..., port=...)`, see there. The control surface under
`/_simulator/` (module `control`) exists in the simulator only, not in any real server.
"""

from __future__ import annotations

from nvr_backup.simulator.catalogue import CameraState, Catalogue, SimClip
from nvr_backup.simulator.faults import FAULTS, Faults
from nvr_backup.simulator.media import ClipContent, Digest
from nvr_backup.simulator.server import Simulator, serve
from nvr_backup.simulator.settings import DEMO_CAMERAS, STYLES, SimCamera, SimulatorSettings

__all__ = [
    "DEMO_CAMERAS",
    "FAULTS",
    "STYLES",
    "CameraState",
    "Catalogue",
    "ClipContent",
    "Digest",
    "Faults",
    "SimCamera",
    "SimClip",
    "Simulator",
    "SimulatorSettings",
    "serve",
]
