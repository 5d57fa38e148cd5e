"""The settings: written whole, read back, and old ones read too."""

import json

import pytest

from fpspeech.config import Config
from fpspeech.pruning import PruningConfig, PruningError

EVERYTHING = Config(
    pruning=PruningConfig(
        sparsity=0.4,
        score="contrast",
        update="alps",
        bias=True,
        shrinkage=0.25,
        overrides=(("a.*", 0.5),),
        product_stride=2,
    ),
    exclude=("lm_head",),
    components=(("encoder.ffn", 0.5),),
    default_exclusions=False,
    window_seconds=5.0,
    batch_size=2,
    language="de",
    normalize="features=1,layer0=0.5",
    full_covariance=True,
    search_budget=7,
    search_objective="uncertainty",
    evolve=True,
    adapt_head=True,
    refit_head=False,
    allocation="owl",
    automatic=True,
)


def test_everything_survives_a_file():
    written = json.loads(json.dumps(EVERYTHING.as_json()))
    assert Config.from_json(written) == EVERYTHING


def test_settings_of_an_older_version_have_the_defaults_of_what_it_did_not_know():
    written = json.loads(json.dumps(Config().as_json()))
    later = ("normalize", "full_covariance", "search_objective", "evolve", "adapt_head")
    for name in (*later, "allocation", "automatic"):
        del written[name]
    for name in ("bias", "shrinkage", "order"):
        del written["pruning"][name]
    del written["refit_head"]
    # Before there were allocations every layer lost the same share, and the output layer stayed.
    assert Config.from_json(written) == Config(allocation="uniform", refit_head=False)
    with pytest.raises(TypeError, match="unknown settings"):
        Config.from_json({**written, "normalise": "none"})


def test_strengths_are_read_from_text():
    assert EVERYTHING.strengths == (("features", 1.0), ("layer0", 0.5))
    assert Config(normalize=" features = 1 ").strengths == (("features", 1.0),)
    assert Config(normalize="search").strengths == Config().strengths == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"search_objective": "letters"}, r"search objective: expected one of .*found 'letters'"),
        ({"normalize": "features"}, "expected none, search, or strengths such as"),
        ({"normalize": "features=much"}, "found 'features=much'"),
        ({"allocation": "fair"}, "allocation: expected one of"),
        ({"search_budget": 0}, "search budget: expected 1 or more"),
    ],
)
def test_bad_settings_say_what_was_expected(settings, message):
    with pytest.raises(PruningError, match=message):
        Config(**settings)
