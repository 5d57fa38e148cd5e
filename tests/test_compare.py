"""Methods and controls at equal sparsity: whose recordings each of them really listens to."""

from dataclasses import replace

import numpy as np
import pytest
import soundfile

import fpspeech.adaptation as adapting
from fpspeech import Config, PruningConfig, compare, load_speech_model, read_utterances
from fpspeech.compare import ComparisonError, at_most, compare_speakers
from fpspeech.corpora import Utterance
from fpspeech.evaluation import text_normalizer
from fpspeech.generic import GenericError, measure_generic
from fpspeech.personalize_speech import personalize
from fpspeech.pruning import PruningError, sparsity_of

CONFIG = Config(pruning=PruningConfig(sparsity=0.5))


@pytest.fixture
def model(tiny_group):
    return load_speech_model(tiny_group, device="cpu")


@pytest.fixture
def utterances(speech):
    return read_utterances(speech, with_text=True)


@pytest.fixture
def strangers(tmp_path):
    """Recordings of other people, of 1 s each."""
    found = []
    for number in range(6):
        path = tmp_path / f"stranger{number}.wav"
        noise = np.random.default_rng(number).standard_normal(16_000)
        soundfile.write(path, 0.1 * noise, 16_000)
        found.append(Utterance(f"stranger{number}", path, f"s{number}"))
    return found


@pytest.fixture
def spy(monkeypatch):
    """The names of the files that each pass listened to, and no transcript with them."""
    passes = []
    listen = adapting.listen

    def listening(model, layers, utterances, **named):
        assert all(each.text is None for each in utterances)
        passes.append([each.audio.name for each in utterances])
        return listen(model, layers, utterances, **named)

    monkeypatch.setattr(adapting, "listen", listening)
    return passes


def compared(model, utterances, methods, *, speakers=("ann",), sparsities=(0.5,), **named):
    return compare_speakers(
        model,
        utterances,
        speakers,
        CONFIG,
        methods,
        sparsities,
        text_normalizer("en"),
        **named,
    )


def test_every_calibration_listens_to_its_own_recordings(model, utterances, strangers, spy):
    for each in utterances:
        assert each.text is not None
    methods = ["wanda", "wanda@another", "wanda@generic"]
    rows = compared(model, utterances, methods, generic_recordings=strangers)
    assert [row.method for row in rows] == ["dense", *methods]
    own, another, generic = spy
    audio = {
        name: [u.audio for u in utterances if (u.speaker, u.split) == (name, "adapt")]
        for name in ("ann", "ben")
    }
    assert own == [path.name for path in audio["ann"]]
    assert another == [path.name for path in audio["ben"]]
    assert generic == ["stranger0.wav", "stranger1.wav", "stranger2.wav", "stranger3.wav"]
    assert all(row.reached == rows[1].reached for row in rows[2:]), "at equal sparsity"


def test_another_is_the_next_in_the_alphabet_and_the_first_behind_the_last(
    model, utterances, monkeypatch
):
    calls = []
    monkeypatch.setattr(
        compare,
        "adapt_to",
        lambda model, layers, utterances, *a, **n: calls.append(utterances) or pytest.skip(),
    )
    for speaker, expected in (("ann", "ben"), ("ben", "ann")):
        with pytest.raises(pytest.skip.Exception):
            compared(model, utterances, ["wanda@another"], speakers=[speaker])
        assert {each.speaker for each in calls[-1]} == {expected}
        assert {each.split for each in calls[-1]} == {"adapt"}


def test_masks_of_a_control_are_those_of_the_others_recordings(model, utterances, monkeypatch):
    """And not, say, of the speaker's own under another name."""
    found = []
    prune = adapting.Adaptation.prune
    monkeypatch.setattr(
        adapting.Adaptation, "prune", lambda *a, **n: found.append(prune(*a, **n)) or found[-1]
    )
    rows = compared(model, utterances, ["fine_pruning", "fine_pruning@another"])
    pruning = PruningConfig(0.5, score="fine_pruning", update="none")
    config = replace(CONFIG, pruning=pruning, allocation="uniform")
    made = list(found)  # what follows prunes, too
    for pruned, name in zip(made, ("ann", "ben"), strict=True):
        mine = [u for u in utterances if (u.speaker, u.split) == (name, "adapt")]
        masks = personalize(model, mine, config).masks
        assert all(bool((pruned.masks[each] == mask).all()) for each, mask in masks.items())
    assert rows[1].reached == sparsity_of(made[0].masks)


def test_copies_of_the_speakers_recordings_are_not_generic(
    model, utterances, strangers, spy, tmp_path
):
    mine = [each for each in utterances if each.speaker == "ann"]
    copies = []
    for number, each in enumerate((mine[0], mine[-1])):
        copy = tmp_path / f"copy{number}.wav"
        copy.write_bytes(each.audio.read_bytes())
        copies.append(Utterance(f"copy{number}", copy, "somebody"))
    compared(
        model, utterances, ["wanda@generic"],
        generic_recordings=[*copies, *strangers],
    )  # fmt: skip
    (generic,) = spy
    assert generic == ["stranger0.wav", "stranger1.wav", "stranger2.wav", "stranger3.wav"]


def test_minutes_bound_what_is_listened_to(model, utterances, strangers, spy):
    methods = ["wanda", "wanda@another", "wanda@generic"]
    compared(model, utterances, methods, generic_recordings=strangers, minutes=1.2 / 60)
    assert [len(names) for names in spy] == [2, 2, 2]  # 0.6 + 0.7 s; 1 + 1 s
    assert at_most(strangers, None) == strangers
    assert at_most(strangers, 3.0 / 60) == strangers[:3]
    assert at_most(strangers, 0) == []


def test_a_recording_that_cannot_be_used_stops_no_control(
    model, utterances, strangers, spy, tmp_path
):
    (tmp_path / "half.wav").write_bytes(utterances[0].audio.read_bytes()[:500])
    half = Utterance("half", tmp_path / "half.wav", "ann", split="adapt")
    compared(
        model, [half, *utterances], ["wanda@generic"],
        generic_recordings=strangers, minutes=1.2 / 60,
    )  # fmt: skip
    assert spy == [["stranger0.wav", "stranger1.wav"]]


def test_forgetting_is_measured_on_others_test_recordings(model, utterances):
    rows = compared(model, utterances, ["wanda"], forgetting=2)
    for row in rows:
        ids = row.others.errors.utterance_ids
        assert len(ids) == 2
        assert all(
            each.speaker == "ben" and each.split == "test" for each in utterances if each.id in ids
        )
        assert row.as_json()["others_wer"] == row.others.wer
    assert all(row.others is None for row in compared(model, utterances, ["wanda"]))


def test_one_listening_serves_methods_that_are_normalised_alike(model, utterances, strangers, spy):
    generic = measure_generic(model, strangers)
    config_methods = ["obs+least_squares", "wanda+owl", "magnitude", "wanda+normalized"]
    rows = compare_speakers(
        model, utterances, ["ann"], replace(CONFIG, normalize="features=1"),
        config_methods, (0.3, 0.5), text_normalizer("en"), generic=generic,
    )  # fmt: skip
    assert len(spy) == 2
    assert len(rows) == 1 + 4 * 2


def test_in_sequential_order_alone_nothing_is_listened_to_beforehand(model, utterances, spy):
    rows = compared(model, utterances, ["wanda+sequential"], minutes=0.01)
    assert spy == []
    assert rows[1].reached > 0.3
    compared(model, utterances, ["wanda+sequential", "wanda"], minutes=0.01)
    assert len(spy) == 1


def test_what_cannot_be_compared_is_an_error_before_anything_is_measured(
    model, utterances, strangers, monkeypatch
):
    monkeypatch.setattr(compare, "recognise", lambda *a, **n: pytest.fail("measured"))
    ann = [each for each in utterances if each.speaker == "ann"]
    with pytest.raises(ComparisonError, match="nobody else's recordings"):
        compared(model, ann, ["wanda@another"])
    with pytest.raises(ComparisonError, match="--generic-audio"):
        compared(model, utterances, ["wanda@generic"])
    with pytest.raises(ComparisonError, match="no speaker is named 'eve'"):
        compared(model, utterances, ["wanda"], speakers=["eve"])
    with pytest.raises(GenericError, match="score 'contrast' needs numbers of other people"):
        compared(model, utterances, ["contrast"])
    with pytest.raises(GenericError, match="hold no statistics"):
        compared(model, utterances, ["contrast"], generic=measure_generic(model, strangers[:1]))
    with pytest.raises(GenericError, match="normalisation 'search' needs numbers"):
        compared(model, utterances, ["wanda+normalized"])
    with pytest.raises(PruningError, match="says 'nonsense'"):
        compared(model, utterances, ["wanda+nonsense"])
