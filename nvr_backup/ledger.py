"""The checkpoint as one transfer sees it: its own row, nothing else (`transfer.Ledger`)."""

from __future__ import annotations

from nvr_backup.checkpoint import Checkpoint
from nvr_backup.errors import Unfit
from nvr_backup.keys import with_extension
from nvr_backup.model import UploadState
from nvr_backup.rows import Claim, Keys


class RowLedger:
    """The row of one claim. `keys` names the object keys its clip may have."""

    def __init__(self, checkpoint: Checkpoint, claim: Claim, keys: Keys) -> None:
        self._checkpoint = checkpoint
        self._claim = claim
        self._keys = keys
        self._used = {claim.key}

    async def save_upload(self, state: UploadState) -> None:
        await self._checkpoint.save_upload(self._claim.copy, state)

    async def forget_upload(self) -> None:
        await self._checkpoint.forget_upload(self._claim.copy)

    async def another_key(self, extension: str) -> str:
        keys = self._keys(self._claim.store, self._claim.clip)
        wanted = [with_extension(key, extension) for key in keys]
        present = with_extension(self._claim.key, extension)
        if present in wanted:
            # Never one before it: what was found wrong may lie there, and pass for the clip.
            del wanted[: wanted.index(present)]
        unused = (key for key in wanted if key not in self._used)
        key = await self._checkpoint.change_key(self._claim.copy, unused)
        if key is None:
            raise Unfit(
                f"Every object key this clip could have in {self._claim.store} is taken.",
                hint="Look who else writes there; give the store a prefix of its own.",
            )
        self._used.add(key)
        return key
