"""The corpora by name: how each is found, downloaded and read, and under which terms."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fpspeech.corpora.common_voice import find_common_voice, prepare_common_voice
from fpspeech.corpora.fsdd import download_fsdd, find_fsdd, prepare_fsdd
from fpspeech.corpora.hub_corpus import HubOptions, download_hub, find_hub, prepare_hub
from fpspeech.corpora.l2_arctic import find_l2_arctic, prepare_l2_arctic
from fpspeech.corpora.librispeech import (
    download_librispeech,
    find_librispeech,
    prepare_librispeech,
)
from fpspeech.corpora.plain_folder import find_folder_of_recordings, prepare_folder
from fpspeech.corpora.speech_commands import (
    download_speech_commands,
    find_speech_commands,
    prepare_speech_commands,
)
from fpspeech.corpora.speechocean762 import (
    download_speechocean762,
    find_speechocean762,
    prepare_speechocean762,
)
from fpspeech.corpora.torgo import find_torgo, prepare_torgo
from fpspeech.corpora.uaspeech import find_uaspeech, prepare_uaspeech
from fpspeech.corpora.utterance import ManifestError, Utterance
from fpspeech.corpora.vctk import download_vctk, find_vctk, prepare_vctk
from fpspeech.corpora.voxpopuli import find_voxpopuli, prepare_voxpopuli

SEE_HOMEPAGE = "see the terms at the homepage"


@dataclass(frozen=True)
class Corpus:
    """A corpus: its three functions, and what to know before using it.

    ``find`` takes a data folder or None and returns the root, ``download`` takes a target folder
    (None where the terms have to be accepted by hand) and returns the root, ``prepare`` takes the
    root, ``seed``, ``test_share`` and options of its own and returns utterances. ``split`` says how
    adapt and test are apart; ``not_shared`` what may not be passed on. ``found_by`` names options
    that ``find`` and ``download`` take as keywords without naming them.
    """

    name: str
    title: str
    language: str
    licence: str
    homepage: str
    split: str
    not_shared: str
    find: Callable[..., Path]
    prepare: Callable[..., list[Utterance]]
    download: Callable[..., Path] | None = None
    found_by: frozenset[str] = frozenset()

    def utterances(self, data_dir: str | Path | None = None, **options: Any) -> list[Utterance]:
        """Find the corpus and read it, with the options of its functions by name.

        Raises ``ManifestError``; for an option that none has, it names the nearest one.
        """
        root = self.root(data_dir, **options)
        return self.prepare(root, **_for(self.prepare, options))

    def root(self, data_dir: str | Path | None = None, **options: Any) -> Path:
        """Find the corpus; raises ``CorpusNotFound`` and the errors of `utterances`."""
        self._require_known(options)
        return self.find(data_dir, **_for(self.find, options, self.found_by))

    def fetch(self, target: str | Path, **options: Any) -> Path:
        """Download what the options say below a folder and return the root.

        Raises ``ManifestError`` where the terms have to be accepted by hand, and as `root` does.
        """
        self._require_known(options)
        if self.download is None:
            raise ManifestError(
                f"{self.title} cannot be downloaded by a program: get it at {self.homepage}"
            )
        return self.download(target, **_for(self.download, options, self.found_by))

    def _require_known(self, options: Mapping[str, Any]) -> None:
        known = {"seed", "test_share"} | self.found_by
        for function in (self.find, self.prepare, self.download):
            known |= _options(function) if function is not None else set()
        known -= PLACES
        for option in options:
            if option not in known:
                raise ManifestError(
                    f"{self.name}: expected options among {', '.join(sorted(known))}, found "
                    f"{option!r}{_nearest(option, known)}"
                )


PLACES = {"data_dir", "target", "root"}
"""Parameters that are no options."""

NOTHING = "nothing; name the authors"
RECORDINGS = "recordings and transcripts"

CORPORA: dict[str, Corpus] = {
    corpus.name: corpus
    for corpus in (
        Corpus(
            "librispeech",
            "LibriSpeech",
            "en",
            "CC BY 4.0",
            "https://www.openslr.org/12",
            "by chapter; a speaker's only chapter in two halves",
            NOTHING,
            find_librispeech,
            prepare_librispeech,
            download_librispeech,
        ),
        Corpus(
            "speechocean762",
            "speechocean762",
            "en",
            "free for commercial and non-commercial use",
            "https://www.openslr.org/101",
            "by prompt, within each speaker",
            NOTHING,
            find_speechocean762,
            prepare_speechocean762,
            download_speechocean762,
        ),
        Corpus(
            "fsdd",
            "Free Spoken Digit Dataset",
            "en",
            "CC BY-SA 4.0",
            "https://github.com/Jakobovski/free-spoken-digit-dataset",
            "by take; all ten words are on both sides",
            "copies under other terms; name the authors",
            find_fsdd,
            prepare_fsdd,
            download_fsdd,
        ),
        Corpus(
            "common_voice",
            "Common Voice",
            "many (option language)",
            "CC0 1.0",
            "https://commonvoice.mozilla.org",
            "by sentence, the same for all speakers",
            "any attempt to find out who a speaker is",
            find_common_voice,
            prepare_common_voice,
        ),
        Corpus(
            "l2_arctic",
            "L2-ARCTIC",
            "en",
            "CC BY-NC 4.0",
            "https://psi.engr.tamu.edu/l2-arctic-corpus/",
            "by prompt, the same for all speakers",
            "anything for commercial use; name the authors",
            find_l2_arctic,
            prepare_l2_arctic,
        ),
        Corpus(
            "torgo",
            "TORGO",
            "en",
            SEE_HOMEPAGE,
            "https://www.cs.toronto.edu/~complingweb/data/TORGO/torgo.html",
            "by session, no prompt of the test in adaptation; a speaker's only session by prompt",
            f"{RECORDINGS}; personal models only as the terms allow",
            find_torgo,
            prepare_torgo,
        ),
        Corpus(
            "uaspeech",
            "UASpeech",
            "en",
            SEE_HOMEPAGE,
            "https://speechtechnology.web.illinois.edu/uaspeech/",
            "by block: B1 and B3 adapt, B2 tests; most words are on both sides",
            f"{RECORDINGS}; personal models only as the terms allow",
            find_uaspeech,
            prepare_uaspeech,
        ),
        Corpus(
            "vctk",
            "VCTK 0.92",
            "en",
            "CC BY 4.0",
            "https://datashare.ed.ac.uk/handle/10283/3443",
            "by prompt, the same for all speakers",
            NOTHING,
            find_vctk,
            prepare_vctk,
            download_vctk,
        ),
        Corpus(
            "speech_commands",
            "Speech Commands 0.02",
            "en",
            "CC BY 4.0",
            "https://arxiv.org/abs/1804.03209",
            "by word, within each speaker",
            NOTHING,
            find_speech_commands,
            prepare_speech_commands,
            download_speech_commands,
        ),
        Corpus(
            "voxpopuli",
            "VoxPopuli",
            "many (option language)",
            "CC0 1.0; see also the European Parliament's legal notice",
            "https://github.com/facebookresearch/voxpopuli",
            "by day; a speaker's only day in two halves",
            "nothing that the legal notice forbids",
            find_voxpopuli,
            prepare_voxpopuli,
        ),
        Corpus(
            "hub",
            "a dataset of the Hugging Face Hub",
            "as its preset or dataset",
            "see the dataset's page",
            "https://huggingface.co/datasets",
            "by session where a column tells it, else by text, else in two halves",
            "what the dataset's terms forbid",
            find_hub,
            prepare_hub,
            download_hub,
            frozenset(each.name for each in fields(HubOptions)),
        ),
        Corpus(
            "folder",
            "a folder of recordings",
            "any",
            "yours",
            "",
            "as folders called adapt and test say, else by subfolder, else by file",
            "recordings, without the consent of who speaks",
            find_folder_of_recordings,
            prepare_folder,
        ),
    )
}
"""Every corpus by its name, in the order to show them in."""


def find_corpus(name: str) -> Corpus:
    """Return a corpus by name, in any case and with "-" or spaces for "_".

    Raises ``ManifestError`` naming the nearest one and all the others.

    >>> find_corpus("LibriSpeech").licence
    'CC BY 4.0'
    """
    key = name.strip().lower().replace("-", "_").replace(" ", "_")
    if key in CORPORA:
        return CORPORA[key]
    raise ManifestError(
        f"expected the name of a corpus, found {name!r}{_nearest(key, set(CORPORA))}; "
        f"the corpora are {', '.join(CORPORA)}"
    )


def _options(function: Callable[..., object]) -> set[str]:
    every = inspect.signature(function).parameters.values()
    return {each.name for each in every if each.kind is not each.VAR_KEYWORD} - PLACES


def _for(
    function: Callable[..., object], options: Mapping[str, Any], more: Collection[str] = ()
) -> dict[str, Any]:
    """The options that the function takes, and `more`; one name where it takes several is a list.

    A string is a sequence of strings too: of its letters.
    """
    parameters = inspect.signature(function).parameters
    found = {}
    for name, value in options.items():
        if name in more or name in _options(function):
            several = name in parameters and _SEVERAL.search(str(parameters[name].annotation))
            found[name] = (value,) if several and isinstance(value, str) else value
    return found


_SEVERAL = re.compile(r"(Sequence|Collection)\[str\]")


def _nearest(name: str, known: set[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""
