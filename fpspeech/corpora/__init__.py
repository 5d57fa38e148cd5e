"""Where data comes from: recordings, manifests and folders of them, speakers, splits."""

from fpspeech.corpora.archives import ArchiveError
from fpspeech.corpora.audio import (
    SILENCE_DBFS,
    Recording,
    fingerprint,
    inspect_recording,
    is_silent,
    read_audio,
    read_windows,
)
from fpspeech.corpora.catalogue import CORPORA, Corpus, find_corpus
from fpspeech.corpora.containers import AUDIO_SUFFIXES, UnusableAudio
from fpspeech.corpora.contents import contents, with_contents
from fpspeech.corpora.hub_audio import AudioDataset, save_hub_audio
from fpspeech.corpora.layout import CorpusNotFound
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
    "CORPORA",
    "SILENCE_DBFS",
    "ArchiveError",
    "AudioDataset",
    "Corpus",
    "CorpusNotFound",
    "ManifestError",
    "Recording",
    "SpeakerSummary",
    "UnusableAudio",
    "Utterance",
    "contents",
    "find_corpus",
    "fingerprint",
    "hold_out",
    "inspect_recording",
    "is_silent",
    "read_audio",
    "read_utterances",
    "read_windows",
    "save_hub_audio",
    "summarise_speakers",
    "with_contents",
    "write_manifest",
]
