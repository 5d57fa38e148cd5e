"""The measured allocation against brute force over every table of levels, and its measuring."""

import itertools
from contextlib import contextmanager

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from fpspeech.pruning import PruningError
from fpspeech.pruning.layers import PrunableLayer
from fpspeech.pruning.sensitivity import cheapest_levels, isotonic, measure_costs, sensitivity

LEVELS = (0.0, 0.3, 0.5, 0.7, 0.9)


def slow_isotonic(values):
    """The max-min formula of isotonic regression."""
    mean = lambda part: sum(part) / len(part)  # noqa: E731
    n = len(values)
    return [
        max(min(mean(values[i : j + 1]) for j in range(k, n)) for i in range(k + 1))
        for k in range(n)
    ]


def repaired(costs):
    return {
        unit: dict(zip(table, slow_isotonic(list(table.values())), strict=True))
        for unit, table in costs.items()
    }


def slow_cheapest(sizes, costs, sparsity):
    """The least sum of costs, where a unit may mix two of its levels.

    A linear program with one constraint has a best solution with one mixed unit at most: every
    unit is taken for it, with every pair of its levels, and every choice of level elsewhere.
    """
    target = sparsity * sum(sizes.values())
    best = float("inf")
    for mixed in sizes:
        others = [unit for unit in sizes if unit != mixed]
        for choice in itertools.product(*(costs[unit].items() for unit in others)):
            pruned = sum(sizes[u] * level for u, (level, _) in zip(others, choice, strict=True))
            cost = sum(each for _, each in choice)
            wanted = (target - pruned) / sizes[mixed]
            for (low, start), (high, end) in itertools.combinations_with_replacement(
                costs[mixed].items(), 2
            ):
                if not low - 1e-12 <= wanted <= high + 1e-12:
                    continue
                share = (wanted - low) / (high - low) if high > low else 0.0
                best = min(best, cost + start + share * (end - start))
    return best


def mixture(table, level):
    """The cost of a level on the lower hull of a table, by every pair of points around it."""
    return min(
        start + (end - start) * ((level - low) / (high - low) if high > low else 0.0)
        for (low, start), (high, end) in itertools.combinations_with_replacement(table.items(), 2)
        if low <= level <= high
    )


def table_of(values):
    """Costs by level; level 0 costs nothing."""
    return dict(zip(LEVELS, (0.0, *values), strict=True))


tables = st.dictionaries(
    st.sampled_from(["a", "b", "c", "d"]),
    st.lists(st.integers(0, 12).map(float), min_size=4, max_size=4).map(table_of),
    min_size=1,
    max_size=4,
)


@settings(max_examples=80, deadline=None)
@given(tables, st.lists(st.integers(1, 9), min_size=4, max_size=4), st.floats(0, 0.9))
def test_no_choice_of_levels_or_mixture_costs_less(costs, many, sparsity):
    sizes = dict(zip(costs, many, strict=False))
    found = cheapest_levels(sizes, costs, sparsity)
    pruned = sum(sizes[unit] * level for unit, level in found.items())
    assert pruned == pytest.approx(sparsity * sum(sizes.values()), abs=1e-9)
    table = repaired(costs)
    cost = sum(mixture(table[unit], level) for unit, level in found.items())
    assert cost == pytest.approx(slow_cheapest(sizes, table, sparsity), abs=1e-6)
    off_the_table = [unit for unit, level in found.items() if level not in LEVELS]
    assert len(off_the_table) <= 1


@settings(max_examples=60, deadline=None)
@given(tables, st.floats(0, 0.9), st.floats(0, 0.9))
def test_more_sparsity_never_gives_a_unit_less(costs, one, two):
    sizes = {unit: 3 + n for n, unit in enumerate(sorted(costs))}
    less, more = (cheapest_levels(sizes, costs, each) for each in sorted((one, two)))
    assert all(less[unit] <= more[unit] + 1e-12 for unit in sizes)


@settings(max_examples=40, deadline=None)
@given(tables, st.floats(0, 0.9), st.randoms())
def test_the_order_of_the_units_changes_nothing(costs, sparsity, random):
    sizes = {unit: 3 + n for n, unit in enumerate(sorted(costs))}
    names = list(costs)
    random.shuffle(names)
    shuffled = {unit: dict(reversed(costs[unit].items())) for unit in names}
    again = cheapest_levels({unit: sizes[unit] for unit in names}, shuffled, sparsity)
    assert again == cheapest_levels(sizes, costs, sparsity)


def test_equal_units_are_filled_in_the_order_of_their_names():
    costs = {unit: {0.0: 0.0, 0.5: 1.0, 0.9: 3.0} for unit in ("b", "a")}
    assert cheapest_levels({"b": 10, "a": 10}, costs, 0.3) == {"a": 0.5, "b": pytest.approx(0.1)}


def test_the_cheap_unit_goes_first_and_the_dear_one_takes_the_rest():
    costs = {"cheap": {0.5: 0.01, 0.9: 0.1}, "dear": {0.5: 1.0, 0.9: 9.0}}
    found = cheapest_levels({"cheap": 100, "dear": 100}, costs, 0.6)
    assert found == {"cheap": 0.9, "dear": pytest.approx(0.3)}


def test_the_size_of_a_unit_counts():
    """The same harm buys four times the weights."""
    costs = {"small": {0.8: 1.0}, "large": {0.8: 1.0}}
    found = cheapest_levels({"small": 100, "large": 400}, costs, 0.64)
    assert found == {"small": 0.0, "large": pytest.approx(0.8)}


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(-9, 9), max_size=7))
def test_isotonic_equals_the_max_min_formula(values):
    found = isotonic(values)
    assert found == pytest.approx(slow_isotonic(values))
    assert found == sorted(found)


def test_a_budget_above_the_highest_levels_is_an_error():
    costs = {"a": {0.5: 1.0, 0.8: 2.0}, "b": {0.6: 1.0}}
    sizes = {"a": 100, "b": 100}
    assert cheapest_levels(sizes, costs, 0.7) == {"a": pytest.approx(0.8), "b": pytest.approx(0.6)}
    with pytest.raises(PruningError, match=r"71\.0% was asked .* come to 70\.0%"):
        cheapest_levels(sizes, costs, 0.71)


def test_tables_that_say_nothing_are_errors():
    with pytest.raises(PruningError, match=r"size and costs .* \['b'\]"):
        cheapest_levels({"a": 10, "b": 10}, {"a": {0.5: 1.0}}, 0.5)
    with pytest.raises(PruningError, match="a has a cost at level 1"):
        cheapest_levels({"a": 10}, {"a": {1.0: 1.0}}, 0.5)
    with pytest.raises(PruningError, match=r"cost of a at level 0\.5 is inf"):
        cheapest_levels({"a": 10}, {"a": {0.5: float("inf")}}, 0.5)
    with pytest.raises(PruningError, match="expected units with weights"):
        cheapest_levels({}, {}, 0.5)


def layer(name: str, inputs: int, outputs: int) -> PrunableLayer:
    return PrunableLayer(name, nn.Linear(inputs, outputs))


def test_layers_have_the_level_of_their_unit():
    units = {"ffn": [layer("x", 10, 20), layer("y", 10, 30)], "attention": [layer("z", 10, 50)]}
    costs = {"ffn": {0.8: 0.1}, "attention": {0.8: 1.0}}
    found = sensitivity(units, costs, 0.6)
    assert dict(found.overrides) == {"x": 0.8, "y": 0.8, "z": pytest.approx(0.4)}
    assert found.reached == pytest.approx(0.6)


def test_a_layer_in_two_units_is_an_error():
    shared = layer("x", 10, 20)
    with pytest.raises(PruningError, match="x is in the units 'a' and 'b'"):
        sensitivity({"a": [shared], "b": [shared]}, {"a": {0.5: 1.0}, "b": {0.5: 1.0}}, 0.3)


class Pruning:
    """Remembers what was in force when a divergence was asked for."""

    def __init__(self, cost):
        self.cost = cost
        self.now = None
        self.asked = []
        self.gradients = []

    @contextmanager
    def prune(self, unit, level):
        assert self.now is None, "the unit before was not restored"
        self.now = (unit, level)
        try:
            yield
        finally:
            self.now = None

    def divergence(self):
        self.asked.append(self.now)
        self.gradients.append(torch.is_inference_mode_enabled())
        return self.cost(*self.now)


def test_every_unit_is_measured_alone_at_every_level():
    pruning = Pruning(lambda unit, level: level * len(unit))
    progress = []
    costs = measure_costs(
        ["a", "bb"],
        [0.5, 0.0, 0.3, 0.5],
        pruning.prune,
        pruning.divergence,
        progress=lambda done, of: progress.append((done, of)),
    )
    assert costs == {"a": {0: 0, 0.3: 0.3, 0.5: 0.5}, "bb": {0: 0, 0.3: 0.6, 0.5: 1.0}}
    assert pruning.asked == [("a", 0.3), ("a", 0.5), ("bb", 0.3), ("bb", 0.5)]
    assert all(pruning.gradients)
    assert progress == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert pruning.now is None


def test_a_cost_that_is_not_finite_names_the_unit_and_ends_the_pruning():
    pruning = Pruning(lambda unit, level: float("nan") if unit == "b" else 1.0)
    with pytest.raises(PruningError, match=r"cost of b at level 0\.5 is nan"):
        measure_costs(["a", "b"], [0.5], pruning.prune, pruning.divergence)
    assert pruning.now is None


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_measured_on_a_model_it_beats_uniform_by_its_own_measure(seed):
    """Two layers in parallel, so that their squared errors do add up."""
    generator = torch.Generator().manual_seed(seed)
    weights = {
        "a": torch.randn(40, generator=generator) * 3,
        "b": torch.randn(160, generator=generator),
    }

    def error(levels):
        total = 0.0
        for unit, level in levels.items():
            lowest = weights[unit].square().sort().values[: int(len(weights[unit]) * level + 1e-6)]
            total += float(lowest.sum())
        return total

    pruning = Pruning(lambda unit, level: error({unit: level}))
    levels = [n / 10 for n in range(10)]
    costs = measure_costs(weights, levels, pruning.prune, pruning.divergence)
    found = cheapest_levels({unit: len(w) for unit, w in weights.items()}, costs, 0.6)
    assume(found["a"] != pytest.approx(0.6))
    mixed = sum(mixture(costs[unit], level) for unit, level in found.items())
    assert mixed < error({"a": 0.6, "b": 0.6})
