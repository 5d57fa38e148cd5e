"""Uniform, OWL and Erdős-Rényi-kernel against their formulas written out slowly."""

import itertools
from fnmatch import fnmatchcase

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from fpspeech.pruning import InputStatistics, PruningConfig, PruningError, make_masks, sparsity_of
from fpspeech.pruning.allocation import Allocation, LayerSparsity, erk, owl, uniform
from fpspeech.pruning.layers import PrunableLayer


def layers_of(*modules: nn.Module) -> list[PrunableLayer]:
    return [PrunableLayer(f"layer{n}", module) for n, module in enumerate(modules)]


def some_layers(seed: int = 0) -> list[PrunableLayer]:
    """Of every kind, of sizes that differ, with weights whose tails differ."""
    torch.manual_seed(seed)
    layers = layers_of(
        nn.Linear(40, 25),
        nn.Linear(12, 60),
        nn.Conv1d(8, 10, 3),
        weight_norm(nn.Conv1d(16, 16, 4, groups=4), dim=2),
        nn.Conv2d(3, 9, (3, 2)),
    )
    for power, layer in enumerate(layers, start=1):
        weight = torch.randn(layer.shape)
        layer.assign(weight.sign() * weight.abs() ** power)
    return layers


def statistics_of(layers: list[PrunableLayer], seed: int = 0) -> dict[str, InputStatistics]:
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for layer in layers:
        groups, _, inputs = layer.shape
        x = torch.randn(groups, 30, inputs, generator=generator, dtype=torch.float64)
        found[layer.name] = InputStatistics(30, x.sum(1), x.abs().sum(1), x.square().sum(1))
    return found


def sparsities(allocation: Allocation) -> dict[str, float]:
    return {layer.name: layer.sparsity for layer in allocation.layers}


def mean_over_weights(allocation: Allocation) -> float:
    total = sum(layer.size for layer in allocation.layers)
    return sum(layer.size * layer.sparsity for layer in allocation.layers) / total


def slow_outliers(layers, statistics, multiple):
    """Share of |w|·sqrt(E[x²]) above `multiple` times the mean of all layers given, by a loop."""
    scores = []
    for layer in layers:
        weight, rms = layer.weight().tolist(), statistics[layer.name].root_mean_square.tolist()
        groups, outputs, inputs = layer.shape
        for g, o, i in itertools.product(range(groups), range(outputs), range(inputs)):
            scores.append(abs(weight[g][o][i]) * rms[g][i])
    mean = sum(scores) / len(scores)
    return sum(score > multiple * mean for score in scores) / len(scores)


@pytest.mark.parametrize("blocks", [None, {"layer0": "a", "layer3": "a", "layer1": "b"}])
def test_owl_equals_its_formula_where_nothing_is_clipped(blocks):
    layers = some_layers()
    statistics = statistics_of(layers)
    name_of = {layer.name: (blocks or {}).get(layer.name, layer.name) for layer in layers}
    outliers = {
        block: slow_outliers([x for x in layers if name_of[x.name] == block], statistics, 3.0)
        for block in name_of.values()
    }
    least, most = min(outliers.values()), max(outliers.values())
    assert most > least
    map_ = {b: (d - least) / (most - least) * 2 * 0.1 for b, d in outliers.items()}
    total = sum(layer.size for layer in layers)
    mean = sum(layer.size * map_[name_of[layer.name]] for layer in layers) / total
    expected = {layer.name: 1 - ((1 - 0.6) + map_[name_of[layer.name]] - mean) for layer in layers}
    found = owl(layers, statistics, 0.6, multiple=3.0, spread=0.1, blocks=blocks)
    assert sparsities(found) == pytest.approx(expected, abs=1e-9)


def slow_shift(sizes, wanted, total, cap):
    """Tries every way in which layers may be clipped, and keeps the one that is consistent."""
    for state in itertools.product(("zero", "free", "cap"), repeat=len(sizes)):
        free = [n for n, each in enumerate(state) if each == "free"]
        if not free:
            continue
        fixed = sum(size * cap for size, each in zip(sizes, state, strict=True) if each == "cap")
        weights = sum(sizes[n] for n in free)
        shift = (total - fixed - sum(sizes[n] * wanted[n] for n in free)) / weights
        moved = [value + shift for value in wanted]
        agrees = {
            "zero": lambda v: v <= 0,
            "free": lambda v: 0 <= v <= cap,
            "cap": lambda v: v >= cap,
        }
        if all(agrees[each](value) for each, value in zip(state, moved, strict=True)):
            return [min(max(value, 0.0), cap) for value in moved]
    raise AssertionError("no way of clipping is consistent")


@pytest.mark.parametrize(("sparsity", "cap"), [(0.9, 0.92), (0.05, 0.9), (0.5, 0.55)])
def test_owl_clips_and_spends_the_rest_on_the_others(sparsity, cap):
    layers = some_layers()
    statistics = statistics_of(layers)
    outliers = [slow_outliers([layer], statistics, 2.0) for layer in layers]
    least, most = min(outliers), max(outliers)
    wanted = [-(each - least) / (most - least) * 0.4 for each in outliers]
    sizes = [layer.size for layer in layers]
    expected = slow_shift(sizes, wanted, sparsity * sum(sizes), cap)
    found = owl(layers, statistics, sparsity, multiple=2.0, spread=0.2, cap=cap)
    assert [layer.sparsity for layer in found.layers] == pytest.approx(expected, abs=1e-9)
    clipped = [layer for layer in found.layers if layer.sparsity in (0.0, cap)]
    assert clipped, "the case does not reach the clip"


def test_owl_keeps_more_where_outliers_are():
    torch.manual_seed(0)
    even, peaked = layers_of(nn.Linear(50, 40), nn.Linear(50, 40))
    even.assign(torch.ones(even.shape))
    peaked.assign(torch.where(torch.rand(peaked.shape) < 0.02, 20.0, 1.0))
    found = sparsities(owl([even, peaked], statistics_of([even, peaked]), 0.7))
    assert found["layer1"] == pytest.approx(0.62)
    assert found["layer0"] == pytest.approx(0.78)


def test_owl_without_any_difference_is_uniform():
    layers = layers_of(nn.Linear(10, 8), nn.Linear(10, 20))
    for layer in layers:
        layer.assign(torch.ones(layer.shape))
    found = sparsities(owl(layers, statistics_of(layers), 0.7, multiple=100))
    assert found == pytest.approx({"layer0": 0.7, "layer1": 0.7})


def slow_erk(layers, sparsity):
    """As RigL does it: whoever would be denser than dense is, and the others share anew."""
    raw = {}
    for layer in layers:
        module = layer.module
        shape = tuple(module.weight.shape)
        size = torch.Size(shape).numel()
        raw[layer.name] = sum(shape) / size
    dense: set[str] = set()
    while True:
        keep = (1 - sparsity) * sum(layer.size for layer in layers)
        keep -= sum(layer.size for layer in layers if layer.name in dense)
        open_ = [layer for layer in layers if layer.name not in dense]
        factor = keep / sum(raw[layer.name] * layer.size for layer in open_)
        over = {layer.name for layer in open_ if raw[layer.name] * factor > 1}
        if not over:
            return {
                layer.name: 0.0 if layer.name in dense else 1 - raw[layer.name] * factor
                for layer in layers
            }
        highest = max(raw[name] for name in over)
        dense |= {name for name in over if raw[name] == highest}


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9])
def test_erk_equals_the_loop_of_rigl(sparsity):
    layers = some_layers()
    found = sparsities(erk(layers, sparsity, cap=0.999))
    assert found == pytest.approx(slow_erk(layers, sparsity), abs=1e-9)


def test_erk_is_hardest_on_the_large_layer_up_to_the_cap():
    layers = layers_of(nn.Linear(400, 300), nn.Linear(20, 10))
    free = sparsities(erk(layers, 0.9, cap=0.99))
    capped = sparsities(erk(layers, 0.9, cap=0.9001))
    assert free["layer0"] > 0.9001 > capped["layer1"] > free["layer1"] == 0.0
    assert capped["layer0"] == pytest.approx(0.9001)


methods = st.sampled_from(["uniform", "owl", "erk"])


def by(method: str, layers, sparsity: float, **options) -> Allocation:
    if method == "owl":
        return owl(layers, statistics_of(some_layers()), sparsity, multiple=2.0, **options)
    return {"uniform": uniform, "erk": erk}[method](layers, sparsity, **options)


@settings(max_examples=60, deadline=None)
@given(methods, st.floats(0, 0.95), st.floats(0, 0.5))
def test_the_budget_is_exact_within_zero_and_the_cap(method, sparsity, spread):
    options = {"spread": spread} if method == "owl" else {}
    found = by(method, some_layers(), sparsity, **options)
    assert mean_over_weights(found) == pytest.approx(sparsity, abs=1e-12)
    assert all(0 <= layer.sparsity <= 0.95 for layer in found.layers)
    rows = sum(layer.shape[0] * layer.shape[1] for layer in some_layers())
    weights = sum(layer.size for layer in found.layers)
    assert 0 <= sparsity - found.reached + 1e-5 <= rows / weights + 2e-5


@settings(max_examples=40, deadline=None)
@given(methods, st.floats(0, 0.95), st.floats(0, 0.95))
def test_more_sparsity_never_gives_a_layer_less(method, one, two):
    less, more = (sparsities(by(method, some_layers(), each)) for each in sorted((one, two)))
    assert all(less[name] <= more[name] + 1e-12 for name in less)


@settings(max_examples=30, deadline=None)
@given(methods, st.permutations(range(5)))
def test_the_order_of_the_layers_changes_nothing(method, order):
    layers = some_layers()
    shuffled = [layers[n] for n in order]
    assert sparsities(by(method, shuffled, 0.7)) == sparsities(by(method, layers, 0.7))


@pytest.mark.parametrize("method", ["uniform", "owl", "erk"])
def test_masks_reach_what_the_allocation_says(method):
    layers = some_layers()
    found = by(method, layers, 0.7)
    config = PruningConfig(0.7, score="magnitude", update="none", overrides=found.overrides)
    masks = make_masks(layers, {}, config)
    assert sparsity_of(masks) == pytest.approx(found.reached, abs=1e-12)
    for layer in found.layers:
        assert int((~masks[layer.name]).sum()) == layer.pruned


@pytest.mark.parametrize("name", ["a[0].b", "a*", "a?c", "[!x]", "plain.0", "]["])
def test_overrides_match_their_layer_alone(name):
    odd = PrunableLayer(name, nn.Linear(10, 4))
    ((pattern, sparsity),) = uniform([odd], 0.5).overrides
    assert sparsity == 0.5
    assert fnmatchcase(name, pattern)
    for other in ("a0.b", "abc", "a", "y", "plain.1", "x", f"{name}.more"):
        assert other == name or not fnmatchcase(other, pattern)


def test_it_prints_as_a_table():
    allocation = Allocation(
        (
            LayerSparsity("encoder.one", 0.5, size=1000, pruned=490),
            LayerSparsity("two", 0.25, size=200_000, pruned=50_000),
        )
    )
    assert str(allocation).splitlines() == [
        "layer              weights  sparsity",
        "encoder.one          1,000     50.0%",
        "two                200,000     25.0%",
        "total              201,000     25.1%",
    ]


def test_what_cannot_be_met_is_an_error():
    layers = some_layers()
    with pytest.raises(PruningError, match=r"cap .* is 0.6"):
        erk(layers, 0.7, cap=0.6)
    with pytest.raises(PruningError, match=r"cap .* is 1"):
        erk(layers, 0.7, cap=1.0)
    with pytest.raises(PruningError, match=r"found 1\.2"):
        uniform(layers, 1.2)
    with pytest.raises(PruningError, match="nothing to allocate"):
        uniform([], 0.5)
    with pytest.raises(PruningError, match="layer4 saw no input"):
        owl(layers, statistics_of(layers[:-1]), 0.5)
    with pytest.raises(PruningError, match="'typo', which is no pruned layer"):
        owl(layers, statistics_of(layers), 0.5, blocks={"typo": "a"})
    with pytest.raises(PruningError, match="multiple above 0"):
        owl(layers, statistics_of(layers), 0.5, multiple=0)
