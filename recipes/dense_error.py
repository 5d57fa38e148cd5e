"""Word error rate of the base model, a line a speaker and split, one recording at a time."""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import jiwer
from transformers import Wav2Vec2ForCTC

from recipes.base_model import transcribe
from recipes.manifest import read_audio, read_manifest


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--split", action="append", help="repeatable; the default is test")
    parser.add_argument("--show", type=int, default=0, help="print this many errors a speaker")
    arguments = parser.parse_args()

    model = Wav2Vec2ForCTC.from_pretrained(arguments.model).eval()
    pairs: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for recording in read_manifest(arguments.manifest):
        if recording.split in (arguments.split or ["test"]):
            heard = transcribe(model, read_audio(arguments.manifest.parent / recording.audio))
            pairs[recording.speaker, recording.split].append((recording.text, heard))
    for (speaker, split), texts in sorted(pairs.items()):
        error = jiwer.process_words([said for said, _ in texts], [heard for _, heard in texts])
        print(
            f"{speaker:12} {split:6} {len(texts):4} utterances  WER {error.wer:.3f}  "
            f"S {error.substitutions} D {error.deletions} I {error.insertions}"
        )
        wrong = [(said, heard) for said, heard in texts if said != heard]
        for said, heard in wrong[: arguments.show]:
            print(f"    {said}\n    {heard}")


if __name__ == "__main__":
    main()
