"""Who speaks: voices for training, others for validation, and others again as demo speakers."""

from __future__ import annotations

import random
from dataclasses import dataclass

from recipes.rooms import Room
from recipes.speech_synthesis import Voice

TRAINING_ACCENTS = ("en-us", "en-us", "en-gb", "en-gb-x-rp", "en-us-nyc", "en-gb-x-gbclan")
TRAINING_VARIANTS = (
    *("m1", "m2", "m4", "m5", "m7", "m8", "f1", "f3", "f4", "klatt", "klatt2", "klatt5"),
    *("Alex", "Alicia", "Andy", "Annie", "Denis", "Diogo", "Gene", "Henrique", "Hugo", "Jacky"),
    *("Lee", "Marco", "Michael", "Mike", "Nguyen", "adam", "anika", "antonio", "belinda"),
    *("benjamin", "boris", "caleb", "david", "ed", "edward", "iven", "iven3", "john", "linda"),
    *("marcelo", "max", "michel", "miguel", "norbert", "pablo", "paul", "pedro", "quincy"),
    *("rob", "robert", "sandro", "shelby", "steph", "steph3", "travis", "victor", "zac"),
)
TRAINING_FLITE = {"kal": 105.0, "kal16": 105.0, "rms": 100.0}  # mean F0 in Hz

VALIDATION_ACCENTS = ("en-us", "en-gb-scotland")
VALIDATION_VARIANTS = ("m6", "f5", "Andrea", "klatt3", "edward2", "iven2", "kaukovalta")


def training_voice(rng: random.Random) -> Voice:
    """Two thirds espeak-ng, one third flite, which has few voices and so more variation each."""
    if rng.random() < 0.65:
        return Voice(
            engine="espeak-ng",
            name=f"{rng.choice(TRAINING_ACCENTS)}+{rng.choice(TRAINING_VARIANTS)}",
            pitch=rng.randint(15, 85),
            rate=rng.uniform(0.75, 1.15),
            size=rng.uniform(0.92, 1.08),
        )
    name = rng.choice(("kal", "kal16", "rms", "rms"))
    return Voice(
        engine="flite",
        name=name,
        pitch=TRAINING_FLITE[name] * rng.uniform(0.8, 2.0),
        rate=rng.uniform(0.8, 1.25),
        size=rng.uniform(0.78, 1.12),
    )


def validation_voice(rng: random.Random) -> Voice:
    """An accent or a variant (or both) that training has not."""
    return Voice(
        engine="espeak-ng",
        name=f"{rng.choice(VALIDATION_ACCENTS)}+{rng.choice(VALIDATION_VARIANTS)}",
        pitch=rng.randint(15, 85),
        rate=rng.uniform(0.75, 1.15),
    )


@dataclass(frozen=True)
class DemoSpeaker:
    """An invented person: a voice that training never had, in a room of their own."""

    name: str
    voice: Voice
    room: Room


# Quiet microphones: what 16 bits do not hold, FLAC does not have to store.
DEMO_SPEAKERS = (
    DemoSpeaker(
        "aria",
        Voice("flite", "slt"),
        Room(snr_db=38, noise_slope=1.5, level_db=-48),
    ),
    DemoSpeaker(
        "bruno",
        Voice("flite", "awb"),
        Room(reverberation=0.25, echo_db=-9, snr_db=30, noise_slope=1.5, level_db=-50),
    ),
    DemoSpeaker(
        "clara",
        Voice("espeak-ng", "en-029+f2", pitch=60, rate=0.95),
        Room(reverberation=0.35, echo_db=-5, low=120, snr_db=24, noise_slope=1.8, level_db=-52),
    ),
    DemoSpeaker(
        "dario",
        Voice("espeak-ng", "en-gb-x-gbcwmd+m3", pitch=35),
        Room(reverberation=0.15, echo_db=-10, snr_db=34, noise_slope=1.5, level_db=-48),
    ),
    DemoSpeaker(
        "edith",
        Voice("flite", "slt", pitch=160, rate=0.9, size=1.08),
        Room(low=200, high=4000, snr_db=30, noise_slope=1.0, level_db=-50),
    ),
    DemoSpeaker(
        "felix",
        Voice("flite", "awb", pitch=115, rate=0.95, size=1.06),
        Room(reverberation=0.3, echo_db=-6, snr_db=22, noise_slope=2.0, level_db=-52),
    ),
)
