"""Signs without a transcript: against slow loops, and each guard for itself."""

import math
import random
import textwrap
import zlib
from dataclasses import dataclass, field

import pytest
import torch

from fpspeech import signals
from fpspeech.models import load_speech_model
from fpspeech.models.speech_model import Hypothesis
from fpspeech.pruning import apply_masks, select_layers
from fpspeech.pruning.own_words import fitted
from fpspeech.signals import (
    NOISE_DECIBELS,
    SPEED,
    Heard,
    Reference,
    agreement,
    collapsed,
    consistency,
    hear,
)

WINDOWS = [
    0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(samples))
    for samples in (9_000, 16_000, 12_345)
]


@pytest.fixture(params=["tiny_group", "tiny_whisper_folder"])
def model(request):
    return load_speech_model(request.getfixturevalue(request.param), device="cpu")


def wrote(text, *, tokens=4, log_probability=-1.0, entropy=1.0, informative=4, at_cap=False):
    return Hypothesis(text, (1,) * tokens, log_probability, entropy, informative, at_cap=at_cap)


def heard(*texts, **named):
    return Heard(tuple(wrote(text, **named) for text in texts))


@dataclass
class Fake:
    """A model that writes what a function of the window says."""

    write: object
    sampling_rate: int = 16_000
    window_seconds: float = 30.0
    windows: list = field(default_factory=list)

    def hypothesis(self, window, along=None):
        self.windows.append(window)
        return wrote(self.write(window))


def test_losses_of_the_speakers_own_words_are_those_of_all_windows_together(tiny_group):
    ctc = load_speech_model(tiny_group, device="cpu")
    found = hear(ctc, WINDOWS, words=True)
    together = fitted([ctc.log_posteriors([window])[0] for window in WINDOWS], ctc.spelling)[1]
    assert found.losses == pytest.approx(together, rel=1e-4)
    assert len(found.losses) == len(WINDOWS)
    assert all(each.log_posteriors is None for each in found.hypotheses)
    assert hear(ctc, WINDOWS).losses == ()


def test_a_whisper_has_no_losses_of_words(tiny_whisper_folder):
    assert hear(load_speech_model(tiny_whisper_folder), WINDOWS[:1], words=True).losses == ()


def test_entropy_and_log_probability_of_ctc_by_a_slow_loop(tiny_group):
    model = load_speech_model(tiny_group, device="cpu")
    blank = model.processor.tokenizer.pad_token_id
    totals, informative, best, frames = [], [], 0.0, 0
    for window in WINDOWS:
        here, count = 0.0, 0
        for row in model.logits(window).double().tolist():
            total = sum(math.exp(value) for value in row)
            shares = [math.exp(value) / total for value in row]
            top = max(range(len(row)), key=row.__getitem__)
            best += math.log(shares[top])
            frames += 1
            if top != blank:
                here -= sum(share * math.log(share) for share in shares if share)
                count += 1
        totals.append(here)
        informative.append(count)
    assert sum(informative) > 10
    found = hear(model, WINDOWS)
    assert found.informative == tuple(informative)
    assert found.totals == pytest.approx(totals, rel=1e-4)
    assert found.entropy == pytest.approx(sum(totals) / sum(informative), rel=1e-4)
    assert found.log_probability == pytest.approx(best / frames, rel=1e-4)
    assert all(each.log_posteriors is None for each in found.hypotheses), "not kept"


def test_without_an_informative_position_the_entropy_is_infinite_not_low():
    assert heard("", "", entropy=0.0, informative=0).entropy == math.inf


def test_compression_ratio_is_bytes_over_compressed_bytes():
    found = heard("la la la " * 20, "lä")
    text = ("la la la " * 20 + "\nlä").encode()
    assert found.compression_ratio == len(text) / len(zlib.compress(text))
    assert found.compression_ratio > 3


def test_repetition_is_that_within_windows_whatever_others_say():
    texts = ["la la la " * 20, "", "lä", "lä"]
    encoded = [text.encode() for text in texts if text]
    expected = sum(map(len, encoded)) / sum(len(zlib.compress(each)) for each in encoded)
    assert heard(*texts).repetition == pytest.approx(expected, rel=1e-12)
    assert heard("six", "one").repetition == heard(*["six"] * 50).repetition
    assert heard("", "").repetition == 0.0


PROSE = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz ", k=200))


@pytest.mark.parametrize(
    ("candidate", "dense", "reason"),
    [
        (heard(PROSE), heard(PROSE), None),
        (heard(PROSE[:165]), heard(PROSE), None),
        (
            heard(PROSE[:150]),
            heard(PROSE),
            "writes 150 characters where the dense model writes 200",
        ),
        (heard(PROSE + PROSE[::-1]), heard(PROSE), "writes 400 characters"),
        (heard("abc", "de"), heard("", ""), "writes 6 characters where the dense model writes 0"),
        (heard("ab" * 100), heard(PROSE), "repeats itself"),
        (heard(*["six"] * 60), heard(*textwrap.wrap(PROSE, 3)), "much the same for every window"),
        (heard(*["six", "two"] * 30), heard(*["sihx", "two", "ssix", "tuwo"] * 15), None),
        (heard(PROSE, at_cap=True), heard(PROSE), "cut at the cap"),
        (heard(PROSE, at_cap=True), heard(PROSE, at_cap=True), None),
        (heard(""), heard(""), None),
    ],
)
def test_every_guard_names_its_reason(candidate, dense, reason):
    found = collapsed(candidate, dense)
    if reason is None:
        assert found is None
    else:
        assert reason in found


def edits(one, two):
    """Word edit distance by the plain recursion over a table."""
    rows = list(range(len(two) + 1))
    for i, word in enumerate(one, start=1):
        before, rows[0] = rows[0], i
        for j, other in enumerate(two, start=1):
            before, rows[j] = (
                rows[j],
                min(rows[j] + 1, rows[j - 1] + 1, before + (word != other)),
            )
    return rows[-1]


def test_agreement_is_one_less_the_word_errors_against_the_dense_text():
    dense = ["light on in the hall", "", "stop it now", "yes"]
    other = ["light in the hall", "noise", "stop now at once", ""]
    errors = sum(edits(a.split(), b.split()) for a, b in zip(dense, other, strict=True) if a)
    words = sum(len(a.split()) for a in dense)
    assert agreement(heard(*dense), heard(*other)) == pytest.approx(1 - errors / words)
    assert agreement(heard(*dense), heard(*dense)) == 1
    assert agreement(heard("", " "), heard("", "")) == 1
    assert agreement(heard("", ""), heard("", "word")) == 0


def test_a_model_that_always_writes_the_same_is_consistent_the_blind_spot_of_this_sign():
    assert consistency(Fake(lambda window: "light on"), WINDOWS) == 1
    other = consistency(Fake(lambda window: f"light {window.numel()}"), WINDOWS)
    assert other == pytest.approx(0.5)


def test_consistency_is_asked_of_the_same_audio_faster_and_with_faint_noise(monkeypatch):
    tone = torch.sin(2 * math.pi * 400 * torch.arange(16_000) / 16_000)

    def asked(seed=3):
        model = Fake(lambda window: "light on")
        consistency(model, [tone], seed)
        plain, changed = model.windows
        assert plain is tone
        return changed

    changed = asked()
    assert changed.numel() == pytest.approx(tone.numel() / SPEED, abs=1)
    peak = int(torch.fft.rfft(changed).abs().argmax()) * 16_000 / changed.numel()
    assert peak == pytest.approx(400 * SPEED, abs=2)
    assert torch.equal(asked(), changed)
    assert not torch.equal(asked(seed=4), changed)
    monkeypatch.setattr(signals, "NOISE_DECIBELS", math.inf)
    clean = asked()
    decibels = 10 * math.log10(clean.square().mean() / (changed - clean).square().mean())
    assert decibels == pytest.approx(NOISE_DECIBELS, abs=0.3)


def test_a_model_is_no_distance_from_itself_and_some_when_pruned(model):
    reference = Reference(model, WINDOWS)
    itself, closeness = reference.compare(model)
    assert (closeness.divergence, closeness.agreement) == (0, 1)
    assert itself == reference.heard
    layers = select_layers(model.network, dict(model.exclusions)).layers
    generator = torch.Generator().manual_seed(0)
    masks = {each.name: torch.rand(each.shape, generator=generator) < 0.6 for each in layers}
    with apply_masks(layers, masks):
        found, closeness = reference.compare(model)
        assert found == hear(model, WINDOWS)
        others = [
            model.hypothesis(window, each.tokens).log_posteriors
            for window, each in zip(WINDOWS, reference.heard.hypotheses, strict=True)
        ]
    dense = [
        model.hypothesis(window, each.tokens).log_posteriors
        for window, each in zip(WINDOWS, reference.heard.hypotheses, strict=True)
    ]
    total, positions = 0.0, 0
    for one, two in zip(dense, others, strict=True):
        for p, q in zip(one.double().tolist(), two.double().tolist(), strict=True):
            total += sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))
            positions += 1
    assert closeness.divergence == pytest.approx(total / positions, rel=1e-3)
    assert closeness.divergence > 0.01
    assert closeness.agreement == agreement(reference.heard, found)
