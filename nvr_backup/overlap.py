"""The last bytes that were sent, kept as proof that a source goes on with the same clip.

A source that reads from the middle skips what the store already holds, so no checksum of it can be
compared; by then another version of the clip may lie under the same id. A few bytes before the
middle are read again and must be those that were sent. They travel with the content check's state.
This must never let a clip be put together from two.
"""

from __future__ import annotations

from typing import Final

from nvr_backup.errors import StartOver
from nvr_backup.mp4 import ClipInspector, Container

PROOF_BYTES: Final = 256
"""Of compressed video no two clips agree in so many; cheap in the checkpoint's row."""


class Witness:
    """A `chunks.Inspector` that checks with `mp4` and keeps the last bytes.

    `state` is what an earlier one's `state()` returned, or an inspector's own (without proof), or
    "" for the clip's beginning. Raises StartOver for anything else.
    """

    def __init__(self, state: str = "") -> None:
        proof, _, checked = ("", "", state) if state.startswith("[") else state.partition(":")
        try:
            if state and not checked:
                raise ValueError("no state of the content check")
            self.proof = bytes.fromhex(proof)
        except ValueError as err:
            raise StartOver("The end of what was sent cannot be read.") from err
        self._inspector = ClipInspector(checked)

    @property
    def container(self) -> Container | None:
        """As `ClipInspector.container`."""
        return self._inspector.container

    def feed(self, piece: bytes) -> None:
        """As `ClipInspector.feed`."""
        self._inspector.feed(piece)
        if len(piece) >= PROOF_BYTES:
            self.proof = piece[-PROOF_BYTES:]
        else:
            self.proof = (self.proof + piece)[-PROOF_BYTES:]

    def state(self) -> str:
        """What `Witness(state)` needs to continue after the bytes fed so far."""
        return f"{self.proof.hex()}:{self._inspector.state()}"

    def finish(self) -> None:
        """As `ClipInspector.finish`."""
        self._inspector.finish()
