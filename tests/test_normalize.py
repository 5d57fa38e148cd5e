"""Normalising a speaker: in sequence, to the generic moments, and undone bit for bit."""

import math

import pytest
import torch
from torch import nn

from fpspeech.demo import demo_model
from fpspeech.generic import Generic
from fpspeech.listening import NothingHeardError
from fpspeech.models import load_speech_model
from fpspeech.normalize import Normalization, Normalized, normalize
from fpspeech.pruning import (
    FeatureMoments,
    FeatureObserver,
    PruningError,
    Site,
    apply_masks,
    folded,
    matching_map,
    normalization,
)


def windows_of(seed, tilt, count=3):
    """Noise under a slow beat; voices differ by tilt."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        noise = 0.1 * torch.randn(12_000 + 2_500 * number, generator=generator)
        beat = 1 + torch.linspace(0, 40 + 9 * number, len(noise)).sin()
        found.append(noise * beat + tilt * noise.roll(1))
    return found


USER = windows_of(1, 0.9)
OTHERS = windows_of(2, -0.5, count=5)


def load(request, name):
    folder = demo_model() if name == "demo" else request.getfixturevalue(name)
    return load_speech_model(folder, device="cpu")


@pytest.fixture(params=["tiny_group", "tiny_layer", "tiny_whisper_folder", "demo"])
def model(request):
    return load(request, request.param)


@pytest.fixture
def small(tiny_layer):
    return load_speech_model(tiny_layer, device="cpu")


def sites_of(model):
    return [site for group in model.sites.values() for site in group]


def moments(model, windows):
    observer = FeatureObserver(model.network, sites_of(model))
    for window in windows:
        model.listen([window], observer)
    return observer.moments()


def generic_of(model, windows=OTHERS):
    return Generic(model.source.sha256, moments(model, windows), {}, 1.0, 1)


def everywhere(model, strength=1.0, full=False):
    return Normalization(tuple((name, strength) for name in model.sites), full)


def state(model):
    return {name: tensor.clone() for name, tensor in model.network.state_dict().items()}


def assert_same_state(model, before):
    after = model.network.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def near(generic):
    """Moments of which each feature's mean and scale differ a little, within every bound."""
    found = {}
    for number, (name, each) in enumerate(generic.items()):
        size = len(each.mean)
        generator = torch.Generator().manual_seed(number)
        scale = 1 + 0.3 * torch.rand(size, generator=generator).double()
        shift = 0.2 * torch.randn(size, generator=generator).double() * each.variance.sqrt()
        found[name] = FeatureMoments(
            each.count, each.mean + shift, each.covariance * torch.outer(scale, scale)
        )
    return found


def test_afterwards_the_user_has_the_generic_mean_and_variance_at_every_site(model):
    """Also where what is before has changed meanwhile: the sites are folded in sequence."""
    generic = Generic(model.source.sha256, near(moments(model, USER)), {}, 1.0, 1)
    found = normalize(model, USER, everywhere(model), generic)
    with found.apply(model):
        measured = moments(model, USER)
    for name, each in measured.items():
        expected = generic.moments[name]
        scale = expected.variance.sqrt()
        # A norm after the changed part may ask for more than the largest scale: not here.
        error = (each.mean - expected.mean).abs() / scale
        assert error.max() < 1e-3, name
        torch.testing.assert_close(each.variance, expected.variance, rtol=1e-2, atol=0, msg=name)


@pytest.mark.parametrize("name", ["tiny_group", "tiny_layer", "tiny_whisper_folder"])
def test_with_full_covariances_too(request, name, monkeypatch):
    """A full map of a norm is seen in what its readers make of the features."""
    monkeypatch.setattr(normalization, "SHRINK", 1e-4)
    model = load(request, name)
    generic = Generic(model.source.sha256, flattened(moments(model, USER)), {}, 1.0, 1)
    checked = 0
    for group, sites in model.sites.items():
        places = [place for site in sites for place in seen_at(model, site, generic)]
        found = normalize(model, USER, Normalization(((group, 1.0),), full=True), generic)
        observer = FeatureObserver(model.network, [Site(place) for place, _, _ in places])
        with found.apply(model):
            for window in USER:
                model.listen([window], observer)
        for place, mean, covariance in places:
            measured = observer.moments()[place]
            scale = float(covariance.diagonal().max())
            torch.testing.assert_close(measured.mean, mean, rtol=0, atol=1e-3 * scale**0.5)
            torch.testing.assert_close(
                measured.covariance, covariance, rtol=0, atol=1e-2 * scale, msg=place
            )
            checked += 1
    assert checked >= 2


def flattened(found):
    """Moved moments, and correlations that no diagonal map gives.

    Without new directions: what a norm puts out has none along its weights' inverse.
    """
    changed = {}
    for number, (name, each) in enumerate(found.items()):
        generator = torch.Generator().manual_seed(number)
        shift = 0.2 * torch.randn(len(each.mean), generator=generator).double()
        values, vectors = torch.linalg.eigh(each.covariance)
        most = values.max()
        values = most * (values.clamp_min(0) / most) ** 0.8
        covariance = (vectors * values) @ vectors.T
        changed[name] = FeatureMoments(
            each.count, each.mean + shift * each.variance.sqrt(), covariance
        )
    return changed


def seen_at(model, site, generic):
    """Where the generic moments of a site must show, and what they look like there."""
    module = model.network.get_submodule(site.name)
    wanted = generic.moments[site.name]
    if not isinstance(module, nn.LayerNorm):
        return [(site.name, wanted.mean, wanted.covariance)]
    found = []
    for name in site.readers:
        reader = model.network.get_submodule(name)
        if reader.bias is not None:  # else the mean is not kept
            weight, bias = reader.weight.detach().double(), reader.bias.detach().double()
            covariance = weight @ wanted.covariance @ weight.T
            found.append((name, weight @ wanted.mean + bias, covariance))
    return found


@pytest.mark.parametrize("full", [False, True])
def test_each_site_is_measured_behind_those_before_it(model, full):
    """The same by hand: measure, fold, put in force, go on."""
    generic = generic_of(model)
    chosen = everywhere(model, 0.5, full)
    found = normalize(model, USER, chosen, generic)
    applied, values = [], {}
    for site in sites_of(model):
        observer = FeatureObserver(model.network, [site])
        for window in USER:
            model.listen([window], observer)
        is_norm = isinstance(model.network.get_submodule(site.name), nn.LayerNorm)
        feature_map = matching_map(
            observer.moments()[site.name],
            generic.moments[site.name],
            0.5,
            full=full and (not is_norm or bool(site.readers)),
        )
        some = folded(model.network, site, feature_map)
        applied.append(apply_masks([], {}, network=model.network, values=some))
        values |= some
    for each in reversed(applied):
        each.restore()
    assert found.values.keys() == values.keys()
    assert all(torch.equal(found.values[name], values[name]) for name in values)
    assert found.passes == len(sites_of(model))


def test_the_model_is_left_as_it_was_and_what_is_applied_is_restored(model):
    before = state(model)
    found = normalize(model, USER, everywhere(model, full=True), generic_of(model))
    assert_same_state(model, before)
    with found.apply(model):
        after = model.network.state_dict()
        changed = {name for name in before if not torch.equal(after[name], before[name])}
        assert changed == set(found.values)
    assert_same_state(model, before)


def test_after_an_error_on_the_way_the_model_is_what_it_was(small):
    generic = generic_of(small)
    before = state(small)
    runs = []

    class Windows:
        def __iter__(self):
            runs.append(1)
            if len(runs) == 3:
                raise OSError("the disk is gone")
            return iter(USER)

    with pytest.raises(OSError, match="disk is gone"):
        normalize(small, Windows(), everywhere(small), generic)
    assert_same_state(small, before)


def test_only_what_is_active_is_measured_and_changed(small):
    generic = generic_of(small)
    none = normalize(small, USER, everywhere(small, 0.0), generic)
    assert (none.values, none.passes, none.digest) == ({}, 0, "")
    one = normalize(small, USER, Normalization((("projection", 1.0), ("layer0", 0.0))), generic)
    names = {f"wav2vec2.feature_projection.projection.{each}" for each in ("weight", "bias")}
    assert set(one.values) == names
    assert one.passes == 1


def test_the_order_of_the_strengths_says_nothing_and_the_last_of_two_counts(small):
    generic = generic_of(small)
    pairs = (("features", 0.5), ("layer0", 1.0))
    forth, back = (normalize(small, USER, Normalization(p), generic) for p in (pairs, pairs[::-1]))
    assert forth.digest == back.digest
    assert Normalization((("a", 1.0), ("b", 0.5), ("a", 0.0))).active == {"b": 0.5}


def test_the_digest_tells_what_was_changed(small):
    generic = generic_of(small)
    found = {
        normalize(small, USER, everywhere(small, strength, full), generic).digest
        for strength in (0.5, 1.0)
        for full in (False, True)
        for _ in range(2)
    }
    assert len(found) == 4
    tensor = torch.ones(2)
    assert Normalized({"a": tensor}).digest != Normalized({"b": tensor}).digest


@pytest.mark.parametrize("strength", [-0.5, 1.5, math.nan])
def test_strengths_out_of_range_are_refused(strength):
    with pytest.raises(PruningError, match="normalisation of layer0: expected a strength from 0"):
        Normalization((("layer0", strength),))


def test_what_cannot_be_normalised_is_named(small):
    generic = generic_of(small)
    with pytest.raises(
        PruningError, match=r"no site 'nose' .* one of features, projection, layer0"
    ):
        normalize(small, USER, Normalization((("nose", 1.0),)), generic)
    name = "wav2vec2.encoder.layers.0.final_layer_norm"
    some = {key: value for key, value in generic.moments.items() if key != name}
    lacking = Generic(generic.base, some, {}, 1.0, 1)
    normalize(small, USER, Normalization((("features", 1.0),)), lacking)  # not asked for
    listened = []
    small.listen = lambda windows, counter: listened.append(1)
    with pytest.raises(PruningError, match=f"no generic moments for {name}: .*`fpspeech generic`"):
        normalize(small, USER, everywhere(small), lacking)
    assert not listened  # known before anything runs


def test_without_a_window_there_is_nothing_to_normalise_by(small):
    with pytest.raises(NothingHeardError, match="without a window of audio"):
        normalize(small, [], everywhere(small), generic_of(small))
