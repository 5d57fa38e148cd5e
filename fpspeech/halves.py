"""Two halves of a speaker's audio: what is found on one of them, the other confirms."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fpspeech.pruning import PruningError


def halves(windows: Sequence[Tensor], purpose: str) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Every other window, beginning with the first, and the rest.

    purpose: what needs them, for the message. Raises PruningError with fewer than two windows.
    """
    if len(windows) < 2:
        raise PruningError(
            f"{purpose} needs two windows of audio or more, one half to search on and one to "
            f"confirm, found {len(windows)}: give more recordings, or cut a long one"
        )
    return windows[::2], windows[1::2]
