"""The README.md of a personal model and of a merged one: what it is, without who it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fpspeech.config import Config


def personal_card(base: Mapping[str, Any], config: Config, report: Mapping[str, Any]) -> str:
    """The model card of a personal model folder."""
    images = "photos" in report
    use = "" if images else "fpspeech transcribe RECORDING.wav --personal THIS_FOLDER\n"
    return f"""{_front_matter(base, images)}
# A personal model for `{base["id"]}`

{_what(base, config, report)}

This folder is no whole model: it holds one bit a weight, and what changed. With the base model
at hand:

```bash
{use}fpspeech merge THIS_FOLDER --out MERGED   # a stock Hugging Face folder
```
{_privacy(images)}"""


def merged_card(base: Mapping[str, Any], config: Config, report: Mapping[str, Any]) -> str:
    """The model card of a merged folder."""
    images = "photos" in report
    return f"""{_front_matter(base, images)}
# `{base["id"]}`, personalized

{_what(base, config, report)}

Loads with plain `from_pretrained`. The zeros are stored like other weights: they make this
folder neither smaller nor faster by themselves.
{_privacy(images)}"""


def _front_matter(base: Mapping[str, Any], images: bool) -> str:
    # Only a Hub id means something to others; a local folder's name does not.
    task = "image-classification" if images else "automatic-speech-recognition"
    lines = ["library_name: fpspeech", f"pipeline_tag: {task}"]
    if base["revision"] is not None:
        lines += [f"base_model: {base['id']}"]
    topic = "computer-vision" if images else "speech-recognition"
    lines += [f"tags: [pruning, personalization, {topic}]"]
    return "\n".join(["---", *lines, "---"])


def _what(base: Mapping[str, Any], config: Config, report: Mapping[str, Any]) -> str:
    pruned = report["pruned_weights"]
    if "photos" in report:
        data = f"{report['photos']:,} of one user's unlabeled photos, without labels"
    else:
        data = (
            f"{report['seconds'] / 60:.1f} minutes of one speaker's unlabeled speech, without "
            "transcripts"
        )
    matched = report.get("batch_norms_matched", 0)
    updated = sum(layer["updated"] for layer in report["layers"].values())
    return (
        f"{pruned:,} of {report['prunable_weights']:,} prunable weights "
        f"({pruned / report['prunable_weights']:.1%}) are zero, chosen by the score "
        f"`{config.pruning.score}` (compared by {config.pruning.group}) on {data} and without "
        "backpropagation. "
        + (f"The kept weights of {updated} layers are refitted, in float16. " if updated else "")
        + (f"The moments of {matched} BatchNorms are matched to the base's. " if matched else "")
        + _normalized(report.get("normalization"))
        + _evolved(report.get("evolution"))
        + _adapted_head(report.get("head"))
        + _refitted_head(report.get("refit"))
        + _answers(report.get("output_prior"))
        + f"SHA-256 of the base weights: `{base['sha256']}`."
    )


def _normalized(account: Mapping[str, Any] | None) -> str:
    used = {name: s for name, s in (account or {}).get("used", {}).items() if s > 0}
    if not used:
        return ""
    places = ", ".join(f"{name} (strength {strength:g})" for name, strength in used.items())
    return f"The speaker's features are normalised to other people's at {places}. "


def _evolved(account: Mapping[str, Any] | None) -> str:
    if account is None or not account["evolved"]:
        return ""
    return "Its front end is tuned to the speaker, without labels and by values alone. "


def _adapted_head(account: Mapping[str, Any] | None) -> str:
    if account is None or not account["adapted"]:
        return ""
    return "Its output layer is fitted, without labels, to words that the speaker keeps saying. "


def _refitted_head(account: Mapping[str, Any] | None) -> str:
    if account is None:
        return ""
    return "Its output layer is refitted to what the dense model says of the same recordings. "


def _answers(prior: Mapping[str, Any] | None) -> str:
    if prior is None or not prior["differs_from_training"]:
        return ""
    return (
        f"It answers with {prior['kept_classes']:,} of the base's {prior['classes']:,} classes, "
        "those expected among the photos, and with no other. "
    )


def _privacy(images: bool) -> str:
    holds = "photo, no label" if images else "audio, no transcript"
    whose = "photos" if images else "voice"
    return f"""
It holds no {holds} and no name. It was adapted to one person's {whose} and may serve
others worse. The method is Fine-Pruning (Bingham, Zonouz, Aran, Patterns 2025, arXiv 2602.18507).
"""
