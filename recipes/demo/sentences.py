"""What the demo's speakers say: commands to a house, from templates, about 130 words.

A sentence belongs to the test set or not by its own hash, so a test sentence is in nobody's
training and nobody's adaptation.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator

TEST_PERCENT = 25

SLOTS = {
    "switch": "turn on|turn off|switch on|switch off",
    "device": "light|lights|lamp|fan|heater|radio|television",
    "room": "kitchen|bedroom|bathroom|garden|garage|hall|office",
    "small": "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve",
    "large": "fifteen|twenty|thirty|forty|fifty",
    "number": "{small}|{large}|twenty {small}",
    "unit": "minutes|seconds|hours",
    "part": "in the morning|in the evening|tonight|tomorrow",
    "weekday": "monday|tuesday|wednesday|thursday|friday|saturday|sunday",
    "day": "on {weekday}|today|tomorrow|on {weekday} evening|on {weekday} morning",
    "sound": "music|jazz|piano music|the news|my favorite song|a story",
    "person": "sister|brother|mother|father|doctor|neighbor|friend|teacher",
    "opening": "door|window|curtain",
    "feel": "warmer|cooler|brighter|darker|quiet",
    "food": "milk|bread|butter|eggs|coffee|sugar|apples|rice",
    "open": "open|close|lock",
    "direction": "up|down",
    "chore": "call my {person}|buy {food}|water the garden|close the {room} {opening}"
    "|feed the dog|clean the {room}",
    "place": "station|school|hospital|market|airport",
}

TEMPLATES = (
    "{switch} the {room} {device}",
    "please {switch} the {device} in the {room}",
    "{switch} all the lights in the {room} {part}",
    "set a timer for {number} {unit}",
    "set an alarm for {small} {part}",
    "wake me up at {small} {large} {part}",
    "play {sound} in the {room}",
    "play {sound} for {number} minutes",
    "call my {person} {part}",
    "send a message to my {person} and my {person}",
    "tell my {person} to {chore}",
    "what is the weather like {day}",
    "how far is the {place} from the {place}",
    "how do i get to the {place} {part}",
    "{open} the {room} {opening}",
    "{open} the {opening} in the {room} at {small}",
    "make the {room} {feel} at {small} {part}",
    "add {food} and {food} to the shopping list",
    "do we need {food} or {food}",
    "remind me to {chore} {day}",
    "remind my {person} to {chore} at {small}",
    "turn the volume {direction} to {number}",
    "set the {room} heater to {number} degrees",
    "read my messages from {weekday}",
)


def command(rng: random.Random) -> str:
    """One sentence in upper case."""
    text = rng.choice(TEMPLATES)
    while slot := re.search(r"{(\w+)}", text):
        choice = rng.choice(SLOTS[slot[1]].split("|"))
        text = text[: slot.start()] + choice + text[slot.end() :]
    return text.upper()


def is_test(sentence: str) -> bool:
    """Whether the sentence is kept for testing."""
    return hashlib.sha256(sentence.encode()).digest()[0] % 100 < TEST_PERCENT


def commands(rng: random.Random, *, test: bool) -> Iterator[str]:
    """Endless sentences of the test set or of the rest; they may repeat."""
    while True:
        sentence = command(rng)
        if is_test(sentence) == test:
            yield sentence


def different_commands(rng: random.Random, count: int, *, test: bool) -> list[str]:
    """`count` sentences, each once."""
    chosen: dict[str, None] = {}
    for sentence in commands(rng, test=test):
        chosen[sentence] = None
        if len(chosen) == count:
            break
    return list(chosen)


def word_string(rng: random.Random) -> str:
    """One to four words in no order, so that training cannot lean on the templates alone."""
    return " ".join(rng.choices(WORDS, k=rng.randint(1, 4)))


def _words() -> list[str]:
    text = " ".join([*TEMPLATES, *SLOTS.values()])
    return sorted(set(re.sub(r"{\w+}|\|", " ", text).upper().split()))


WORDS = _words()
