"""Names of methods: every word, what is left alone, and errors that name the word."""

from dataclasses import replace

import pytest

from fpspeech.config import Config
from fpspeech.methods import CALIBRATIONS, calibration_of, config_of, pruning_of
from fpspeech.pruning import PruningConfig, PruningError

GIVEN = Config(
    pruning=PruningConfig(sparsity=0.4, group="layer", ridge=0.02, seed=3), exclude=("lm_head",)
)


def test_a_score_alone_updates_nothing_and_keeps_the_rest():
    found = config_of("wanda", GIVEN)
    assert (found.pruning.score, found.pruning.update) == ("wanda", "none")
    assert (found.pruning.sparsity, found.pruning.group) == (0.4, "layer")
    assert (found.pruning.ridge, found.pruning.seed, found.exclude) == (0.02, 3, ("lm_head",))


@pytest.mark.parametrize("update", ["none", "least_squares", "sparsegpt", "alps"])
def test_updates(update):
    assert config_of(f"obs+{update}", GIVEN).pruning.update == update


@pytest.mark.parametrize("order", ["independent", "sequential"])
def test_orders(order):
    assert config_of(f"obs+least_squares+{order}", GIVEN).pruning.order == order


@pytest.mark.parametrize("allocation", ["uniform", "owl", "erk", "sensitivity", "search"])
def test_allocations(allocation):
    assert config_of(f"obs+{allocation}", GIVEN).allocation == allocation


def test_bias_and_shrunk():
    found = config_of("obs+least_squares+bias+shrunk", GIVEN).pruning
    assert found.bias
    assert found.shrinkage == "auto"
    assert not config_of("obs+least_squares", GIVEN).pruning.bias


def test_normalized_is_as_the_settings_say_or_searched_and_without_the_word_nothing():
    given = Config(normalize="features=1", full_covariance=True)
    assert config_of("obs+normalized", given).normalize == "features=1"
    assert config_of("obs+normalized", given).full_covariance
    assert config_of("obs", given).normalize == "none"
    assert config_of("obs+normalized", Config()).normalize == "search"


def test_evolved_tunes_the_front_end_normalised_or_not():
    alone = config_of("obs+evolved", Config(normalize="features=1"))
    assert alone.evolve
    assert alone.normalize == "none"
    both = config_of("obs+normalized+evolved", Config())
    assert both.evolve
    assert both.normalize == "search"
    assert not config_of("obs", Config(evolve=True)).evolve


def test_head_fits_the_output_layer_whatever_the_front_end():
    assert config_of("obs+head", Config()) == replace(config_of("obs", Config()), adapt_head=True)
    both = config_of("obs+evolved+head", Config())
    assert both.adapt_head
    assert both.evolve
    assert not config_of("obs", Config(adapt_head=True)).adapt_head


def test_a_refitted_output_layer_is_a_word():
    assert Config().refit_head
    assert not config_of("obs", Config()).refit_head
    refitted = replace(config_of("obs", Config()), refit_head=True)
    assert config_of("obs+refit", Config()) == refitted


def test_words_go_in_any_order():
    words = ["least_squares", "owl", "normalized", "bias"]
    found = config_of("obs+" + "+".join(words), GIVEN)
    assert config_of("obs+" + "+".join(reversed(words)), GIVEN) == found


def test_whose_recordings_calibrate():
    assert calibration_of("obs+owl") == "own"
    for calibration in CALIBRATIONS:
        assert calibration_of(f"obs+owl@{calibration}") == calibration
        assert config_of(f"obs+owl@{calibration}", GIVEN) == config_of("obs+owl", GIVEN)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("wnda", "no score is named 'wnda'"),
        ("", "no score is named ''"),
        ("obs+later", r"'obs\+later' says 'later'.*least_squares.*sequential.*owl.*normalized"),
        ("obs+", r"says ''"),
        ("obs@nobody", "calibrated on 'nobody': expected one of own, another, generic"),
        ("obs@", "calibrated on ''"),
        ("obs+shrunk+sequential", "shrinkage"),
    ],
)
def test_errors_name_what_is_wrong(method, message):
    with pytest.raises(PruningError, match=message):
        config_of(method, Config())


def test_without_an_allocation_every_layer_loses_the_same():
    assert config_of("obs", Config(allocation="erk")).allocation == "uniform"


def test_pruning_alone_for_those_who_have_no_more():
    pruning = PruningConfig(sparsity=0.3)
    assert pruning_of("obs+least_squares+bias", pruning) == PruningConfig(sparsity=0.3, bias=True)
    assert pruning_of("wanda+uniform", pruning).score == "wanda"
    for method in (
        "obs+owl",
        "obs+normalized",
        "obs+evolved",
        "obs+head",
        "obs@another",
        "obs@generic",
    ):
        with pytest.raises(PruningError, match="only methods for speech do"):
            pruning_of(method, pruning)
