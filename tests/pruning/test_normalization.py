"""Feature moments, the maps that match them, and folding: against loops, numpy, and hooks."""

import numpy as np
import pytest
import torch
from torch import nn

from fpspeech.pruning import (
    FeatureMap,
    FeatureMoments,
    FeatureObserver,
    PruningError,
    Site,
    apply_masks,
    folded,
    matching_map,
    normalization,
)
from fpspeech.pruning.normalization import LARGEST_SCALE, SHRINK, check_generic

FEATURES = 5


def rows_like(seed, count=400, spread=0.2, features=FEATURES):
    """Correlated rows with a mean, float64; scales stay within the bounds of a map."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.eye(features) + spread * torch.randn(features, features, generator=generator)
    rows = torch.randn(count, features, generator=generator) @ mixing.T
    return (rows + torch.randn(features, generator=generator)).double()


def moments_of(rows):
    rows = rows.double().reshape(-1, rows.shape[-1])
    centred = rows - rows.mean(0)
    return FeatureMoments(len(rows), rows.mean(0), centred.T @ centred / len(rows))


@pytest.fixture
def user():
    return rows_like(1)


@pytest.fixture
def generic():
    return rows_like(2)


@pytest.fixture
def without_shrinkage(monkeypatch):
    monkeypatch.setattr(normalization, "SHRINK", 0.0)


def root(matrix):
    """The symmetric square root, by numpy's general eigenvalues."""
    values, vectors = np.linalg.eig(matrix)
    return (vectors @ np.diag(np.sqrt(values)) @ np.linalg.inv(vectors)).real


def direct(rows, user, generic, strength, full):
    """The formula of the module's docstring, a row at a time, in numpy."""
    own, other = user.covariance.numpy(), generic.covariance.numpy()
    if full:
        floor = SHRINK * (np.diag(own).mean() + np.diag(other).mean()) / 2 * np.eye(len(own))
        half = root(own + floor)
        back = np.linalg.inv(half)
        transport = back @ root(half @ (other + floor) @ half) @ back
    else:
        transport = np.diag(np.sqrt(np.diag(other) / np.diag(own)))
    mean, target = user.mean.numpy(), generic.mean.numpy()
    matrix = (1 - strength) * np.eye(len(own)) + strength * transport
    return [mean + strength * (target - mean) + matrix @ (row - mean) for row in rows.numpy()]


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0])
def test_the_map_is_the_formula(user, generic, strength, full):
    own, other = moments_of(user), moments_of(generic)
    found = matching_map(own, other, strength, full=full)(user)
    expected = torch.tensor(np.array(direct(user, own, other, strength, full)))
    torch.testing.assert_close(found, expected)


def test_a_diagonal_map_gives_the_generic_mean_and_variance(user, generic):
    other = moments_of(generic)
    mapped = moments_of(matching_map(moments_of(user), other)(user))
    torch.testing.assert_close(mapped.mean, other.mean)
    torch.testing.assert_close(mapped.variance, other.variance)
    assert not torch.allclose(mapped.covariance, other.covariance, rtol=0.05)


def test_a_full_map_gives_the_generic_mean_and_covariance(user, generic, without_shrinkage):
    other = moments_of(generic)
    mapped = moments_of(matching_map(moments_of(user), other, full=True)(user))
    torch.testing.assert_close(mapped.mean, other.mean)
    torch.testing.assert_close(mapped.covariance, other.covariance)


def test_a_shrunk_full_map_comes_near(user, generic):
    other = moments_of(generic)
    mapped = moments_of(matching_map(moments_of(user), other, full=True)(user))
    torch.testing.assert_close(mapped.mean, other.mean)
    error = (mapped.covariance - other.covariance).abs().max()
    assert 0 < error < 2 * SHRINK * other.variance.max()


@pytest.mark.parametrize("full", [False, True])
def test_no_strength_is_the_identity(user, generic, full):
    found = matching_map(moments_of(user), moments_of(generic), 0.0, full=full)
    torch.testing.assert_close(found(user), user, rtol=0, atol=1e-12)


@pytest.mark.parametrize("full", [False, True])
def test_a_user_like_everybody_is_left_alone(user, full):
    found = matching_map(moments_of(user), moments_of(user), full=full)
    torch.testing.assert_close(found(user), user, rtol=0, atol=1e-9)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_a_full_map_is_symmetric_and_positive_within_the_bounds(strength):
    own, other = rows_like(3, spread=3.0), 30 * rows_like(4, spread=3.0)
    matrix = matching_map(moments_of(own), moments_of(other), strength, full=True).matrix
    torch.testing.assert_close(matrix, matrix.T)
    values = torch.linalg.eigvalsh(matrix)
    least, most = (1 - strength + strength * scale for scale in (1 / LARGEST_SCALE, LARGEST_SCALE))
    assert values.min() >= least - 1e-9
    assert values.max() <= most + 1e-9
    assert values.max() == pytest.approx(most)  # these two are further apart than that


def test_a_full_map_of_uncorrelated_features_is_the_diagonal_one(without_shrinkage):
    own = FeatureMoments(9, torch.zeros(3).double(), torch.tensor([1.0, 4.0, 2.0]).double().diag())
    other = FeatureMoments(9, torch.ones(3).double(), torch.tensor([4.0, 1.0, 2.0]).double().diag())
    full = matching_map(own, other, full=True)
    torch.testing.assert_close(full.matrix, matching_map(own, other).matrix.diag())
    torch.testing.assert_close(full.matrix.diagonal(), torch.tensor([2.0, 0.5, 1.0]).double())


@pytest.mark.parametrize("full", [False, True])
def test_channels_at_rest_are_not_blown_up(user, generic, full):
    user[:, 0] = 1.0
    generic[:, 1] = -1.0
    found = matching_map(moments_of(user), moments_of(generic), full=full)
    assert torch.isfinite(found.matrix).all()
    assert found.matrix.abs().max() <= LARGEST_SCALE + 1e-9
    mapped = moments_of(found(user))
    torch.testing.assert_close(mapped.mean, moments_of(generic).mean)


def test_moments_of_different_models_and_strengths_out_of_range_are_refused(user, generic):
    own, other = moments_of(user), moments_of(generic)
    with pytest.raises(PruningError, match=r"of 5 features.*of 3: .*different models"):
        matching_map(own, moments_of(generic[:, :3]))
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(PruningError, match="strength from 0 to 1, found"):
            matching_map(own, other, strength)


# What is counted


class Ears(nn.Module):
    """A convolution, a norm and a Linear after each other, over frames."""

    def __init__(self, groups=1, bias=True):
        super().__init__()
        self.conv = nn.Conv1d(4, FEATURES + 1, 3, padding=1, groups=groups, bias=bias)
        self.project = nn.Linear(FEATURES + 1, FEATURES)
        self.norm = nn.LayerNorm(FEATURES)
        self.attention = nn.MultiheadAttention(FEATURES, 1)  # never run
        self.query = nn.Linear(FEATURES, FEATURES)
        self.key = nn.Linear(FEATURES, FEATURES, bias=False)
        self.value = nn.Linear(FEATURES, 2)

    def forward(self, sound):  # (B, 4, T)
        heard = torch.relu(self.conv(sound)).transpose(1, 2)
        normed = self.norm(self.project(heard))
        scores = self.query(normed) @ self.key(normed).transpose(1, 2)
        return scores.softmax(-1) @ self.value(normed)  # (B, T, 2)


SITES = (Site("conv"), Site("project"), Site("norm", ("query", "key", "value")))


@pytest.fixture
def ears():
    torch.manual_seed(0)
    network = Ears()
    with torch.no_grad():  # a norm that does something
        network.norm.weight.uniform_(0.5, 2)
        network.norm.bias.normal_()
    return network.eval()


def outputs_of(network, name, sound):
    """What a module puts out, features last, by a hook of the test's own."""
    seen = []
    handle = network.get_submodule(name).register_forward_hook(
        lambda module, args, output: seen.append(output.detach())
    )
    with torch.no_grad():
        network(sound)
    handle.remove()
    return seen[0].transpose(1, 2) if name == "conv" else seen[0]


def slow_moments(items):
    """Count, mean and covariance by loops over positions, float64."""
    rows = [row.double() for item in items for row in item]
    mean = sum(rows) / len(rows)
    return len(rows), mean, sum(torch.outer(row - mean, row - mean) for row in rows) / len(rows)


def assert_moments(found, expected):
    count, mean, covariance = expected
    assert found.count == count
    torch.testing.assert_close(found.mean, mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.covariance, covariance, rtol=1e-4, atol=1e-6)


def test_only_valid_positions_are_counted_over_all_passes(ears):
    batches = {(7, 3): torch.randn(2, 4, 7), (5, 0, 1): 3 + torch.randn(3, 4, 5)}
    observer = FeatureObserver(ears, SITES)
    items = {site.name: [] for site in SITES}
    for lengths, sound in batches.items():
        with torch.no_grad(), observer.counting(lambda name, lengths=lengths: lengths):
            ears(sound)
        for name, kept in items.items():
            out = outputs_of(ears, name, sound)
            kept += [item[:length] for item, length in zip(out, lengths, strict=True)]
    for name, found in observer.moments().items():
        assert_moments(found, slow_moments(items[name]))


def test_without_lengths_every_position_counts(ears):
    sound = torch.randn(2, 4, 7)
    observer = FeatureObserver(ears, SITES)
    with torch.no_grad(), observer.counting():
        ears(sound)
    for name, found in observer.moments().items():
        assert_moments(found, slow_moments(outputs_of(ears, name, sound)))


def test_outside_of_counting_nothing_is_attached_also_after_an_error(ears):
    observer = FeatureObserver(ears, SITES)
    with pytest.raises(RuntimeError), observer.counting():
        ears(torch.randn(2, 3, 7))
    assert not any(module._forward_hooks for module in ears.modules())
    ears(torch.randn(2, 4, 7))
    assert observer.moments() == {}


def test_a_small_variance_far_from_zero_survives():
    """Σx² - n·m² in float32 would leave noise, or a negative variance."""
    network = nn.Sequential(nn.LayerNorm(3))
    rows = torch.tensor([300.0, -200.0, 1000.0]) + 0.01 * torch.randn(5_000, 3)
    observer = FeatureObserver(network, [Site("0")])
    network[0].forward = lambda features: features
    with observer.counting():
        for part in rows.split(700):
            network(part)
    found = observer.moments()["0"]
    assert (found.variance > 0).all()
    exact = rows.double().var(0, unbiased=False)
    torch.testing.assert_close(found.variance, exact, rtol=1e-4, atol=0)


def test_features_that_are_not_finite_are_an_error_with_the_place(ears):
    observer = FeatureObserver(ears, SITES)
    with torch.no_grad(), observer.counting():
        ears(torch.full((1, 4, 7), torch.nan))
    with pytest.raises(PruningError, match="what conv put out was NaN or infinite"):
        observer.moments()


# Folding


def some_map(features, full, seed=0):
    generator = torch.Generator().manual_seed(seed)
    spread = torch.randn(features, features, generator=generator).double()
    matrix = torch.eye(features).double() + 0.1 * (spread + spread.T)
    shift = torch.randn(features, generator=generator).double()
    return FeatureMap(matrix if full else matrix.diagonal().clone(), shift)


def with_hook(network, name, feature_map, sound):
    """The outputs of a network whose features are mapped on the way."""

    def change(module, args, output):
        if isinstance(module, nn.Conv1d):
            return feature_map(output.transpose(1, 2)).transpose(1, 2)
        return feature_map(output)

    handle = network.get_submodule(name).register_forward_hook(change)
    with torch.no_grad():
        mapped = network(sound)
    handle.remove()
    return mapped


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("site", SITES, ids=lambda site: site.name)
def test_folding_is_the_map_on_the_way(ears, site, full):
    """Also for keys without a bias: what they lose the softmax does not see."""
    sound = torch.randn(2, 4, 9)
    features = FEATURES + 1 if site.name == "conv" else FEATURES
    feature_map = some_map(features, full)
    expected = with_hook(ears, site.name, feature_map, sound)
    with torch.no_grad():
        dense = ears(sound)
        with apply_masks([], {}, network=ears, values=folded(ears, site, feature_map)):
            found = ears(sound)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert (found - dense).abs().max() > 0.01
        assert torch.equal(ears(sound), dense)  # restored bit for bit


def test_a_diagonal_map_of_a_grouped_convolution_folds_and_a_full_one_is_refused():
    torch.manual_seed(0)
    network = Ears(groups=2).eval()
    sound = torch.randn(2, 4, 9)
    feature_map = some_map(FEATURES + 1, full=False)
    expected = with_hook(network, "conv", feature_map, sound)
    with apply_masks([], {}, network=network, values=folded(network, SITES[0], feature_map)):
        torch.testing.assert_close(network(sound), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(PruningError, match=r"conv has 2 groups.*use a diagonal one"):
        folded(network, SITES[0], some_map(FEATURES + 1, full=True))


def test_folding_keeps_the_type_of_the_weights_and_leaves_them_alone(ears):
    before = {name: tensor.clone() for name, tensor in ears.state_dict().items()}
    ears.norm.half()
    values = folded(ears, SITES[2], some_map(FEATURES, full=False))
    assert {tensor.dtype for tensor in values.values()} == {torch.float16}
    ears.norm.float()
    for name, tensor in ears.state_dict().items():
        assert name.startswith("norm.") or torch.equal(tensor, before[name])


@pytest.mark.parametrize("full", [False, True])
def test_a_place_that_cannot_be_shifted_is_refused(full):
    network = Ears(bias=False)
    with pytest.raises(PruningError, match="conv has no bias, and its features cannot be shifted"):
        folded(network, SITES[0], some_map(FEATURES + 1, full))


def test_other_places_that_cannot_be_folded_are_refused(ears):
    full, diagonal = (some_map(FEATURES, each) for each in (True, False))
    with pytest.raises(PruningError, match=r"what reads norm is not known.*use a diagonal one"):
        folded(ears, Site("norm"), full)
    with pytest.raises(PruningError, match="no module 'nose'"):
        folded(ears, Site("nose"), diagonal)
    with pytest.raises(PruningError, match="no module 'nose'"):
        folded(ears, Site("norm", ("query", "nose")), full)
    with pytest.raises(PruningError, match="no module 'nose'"):
        FeatureObserver(ears, [Site("nose")])
    with pytest.raises(PruningError, match="attention is a MultiheadAttention: expected a Layer"):
        folded(ears, Site("attention"), diagonal)
    ears.norm = nn.LayerNorm(FEATURES, elementwise_affine=False)
    with pytest.raises(PruningError, match=r"norm is a LayerNorm: expected .* with a weight"):
        folded(ears, Site("norm"), diagonal)


def test_missing_generic_moments_are_named(user):
    check_generic(SITES[:1], {"conv": moments_of(user)})
    with pytest.raises(PruningError, match=r"no generic moments for norm: .*\(found conv\)"):
        check_generic(SITES[::2], {"conv": moments_of(user)})
