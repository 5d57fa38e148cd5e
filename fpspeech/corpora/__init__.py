"""Where data comes from: recordings, manifests and folders of them, speakers, splits."""

from fpspeech.corpora.audio import (
    SILENCE_DBFS,
    Recording,
    fingerprint,
    inspect_recording,
    is_silent,
    read_audio,
    read_windows,
)
from fpspeech.corpora.containers import AUDIO_SUFFIXES, UnusableAudio
from fpspeech.corpora.manifest import (
    ManifestError,
    Utterance,
    read_utterances,
    write_manifest,
)
from fpspeech.corpora.speakers import SpeakerSummary, summarise_speakers
from fpspeech.corpora.split import hold_out

__all__ = [
    "AUDIO_SUFFIXES",
    "SILENCE_DBFS",
    "ManifestError",
    "Recording",
    "SpeakerSummary",
    "UnusableAudio",
    "Utterance",
    "fingerprint",
    "hold_out",
    "inspect_recording",
    "is_silent",
    "read_audio",
    "read_utterances",
    "read_windows",
    "summarise_speakers",
    "write_manifest",
]
