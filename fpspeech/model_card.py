"""The README.md of a personal model and of a merged one: what it is, without who it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fpspeech.config import Config


def personal_card(base: Mapping[str, Any], config: Config, report: Mapping[str, Any]) -> str:
    """The model card of a personal model folder."""
    return f"""{_front_matter(base)}
# A personal model for `{base["id"]}`

{_what(base, config, report)}

This folder holds one bit a weight, not the weights. With the base model at hand:

```bash
fpspeech transcribe RECORDING.wav --personal THIS_FOLDER
fpspeech merge THIS_FOLDER --out MERGED   # a stock Hugging Face folder
```
{_privacy()}"""


def merged_card(base: Mapping[str, Any], config: Config, report: Mapping[str, Any]) -> str:
    """The model card of a merged folder."""
    return f"""{_front_matter(base)}
# `{base["id"]}`, personalized

{_what(base, config, report)}

Loads with plain `from_pretrained`. The zeros are stored like other weights: they make this
folder neither smaller nor faster by themselves.
{_privacy()}"""


def _front_matter(base: Mapping[str, Any]) -> str:
    # Only a Hub id means something to others; a local folder's name does not.
    lines = ["library_name: fpspeech", "pipeline_tag: automatic-speech-recognition"]
    if base["revision"] is not None:
        lines += [f"base_model: {base['id']}"]
    lines += ["tags: [pruning, personalization, speech-recognition]"]
    return "\n".join(["---", *lines, "---"])


def _what(base: Mapping[str, Any], config: Config, report: Mapping[str, Any]) -> str:
    pruned = report["pruned_weights"]
    return (
        f"{pruned:,} of {report['prunable_weights']:,} prunable weights "
        f"({pruned / report['prunable_weights']:.1%}) are zero, chosen by the score "
        f"`{config.pruning.score}` (compared by {config.pruning.group}) on "
        f"{report['seconds'] / 60:.1f} minutes of one speaker's unlabeled speech, without "
        f"transcripts and without backpropagation. SHA-256 of the base weights: "
        f"`{base['sha256']}`."
    )


def _privacy() -> str:
    return """
It holds no audio, no transcript and no name. It was adapted to one person's voice and may serve
others worse. The method is Fine-Pruning (Bingham, Zonouz, Aran, Patterns 2025, arXiv 2602.18507).
"""
