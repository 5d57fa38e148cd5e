"""The forward-only search against brute force over small tables, and its confirmation."""

import math
from itertools import product

import pytest
import torch

from fpspeech.pruning import PruningError
from fpspeech.pruning.search import (
    CONFIDENCE,
    confirmed,
    coordinate_search,
    probability_lower,
)

CHOICES = {"a": (0.5, 1.0, 0.0), "b": (0.5, 1.0, 0.0), "c": ("x", "y")}
START = {"a": 0.0, "b": 0.0, "c": "x"}
POINTS = [dict(zip(CHOICES, values, strict=True)) for values in product(*CHOICES.values())]


def key(point):
    return tuple(point[name] for name in CHOICES)


class Table:
    """An objective that is looked up, and remembers what it was asked."""

    def __init__(self, values):
        self.values = values
        self.asked = []

    def __call__(self, point):
        self.asked.append(key(point))
        return self.values[key(point)]


def coupled(seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(len(POINTS), generator=generator).tolist()
    return {key(point): value for point, value in zip(POINTS, values, strict=True)}


def separable(seed):
    generator = torch.Generator().manual_seed(seed)
    costs = {
        (name, value): float(torch.rand((), generator=generator))
        for name, values in CHOICES.items()
        for value in values
    }
    return {
        key(point): 1 + sum(costs[name, value] for name, value in point.items()) for point in POINTS
    }


def search(values, budget=100, tolerance=0.0):
    table = Table(values)
    return coordinate_search(START, CHOICES, table, budget=budget, tolerance=tolerance), table


@pytest.mark.parametrize("seed", range(20))
def test_where_coordinates_are_independent_the_best_of_all_points_is_found(seed):
    values = separable(seed)
    found, _ = search(values)
    assert key(found.point) == min(values, key=values.get)
    assert found.objective == min(values.values())
    assert found.start_objective == values[key(START)]


@pytest.mark.parametrize("seed", range(20))
def test_where_they_are_not_no_single_change_is_better(seed):
    values = coupled(seed)
    found, _ = search(values)
    assert found.objective == values[key(found.point)] <= found.start_objective
    for name, choices in CHOICES.items():
        for value in choices:
            assert values[key({**found.point, name: value})] >= found.objective


def slow_search(values, budget, tolerance):
    """The same walk, with the points that were seen in a list."""
    seen, point = [key(START)], dict(START)
    while True:
        before = dict(point)
        for name, choices in CHOICES.items():
            for value in choices:
                tried = {**point, name: value}
                if key(tried) not in seen:
                    if len(seen) == budget:
                        return point, seen
                    seen.append(key(tried))
                best = values[key(point)]
                if values[key(tried)] < best - tolerance * best:
                    point = tried
        if point == before:
            return point, seen


@pytest.mark.parametrize("budget", [1, 2, 5, 9, 100])
@pytest.mark.parametrize("tolerance", [0.0, 0.2])
def test_the_walk_is_the_one_described_within_the_budget(budget, tolerance):
    for seed in range(10):
        values = coupled(seed)
        found, table = search(values, budget, tolerance)
        point, seen = slow_search(values, budget, tolerance)
        assert found.point == point
        assert table.asked == seen
        assert len(seen) == len(set(seen)) == found.evaluations <= budget
        assert [step.objective for step in found.steps] == [values[each] for each in seen]
        assert [key(dict(step.point)) for step in found.steps] == seen
        taken = [step for step in found.steps if step.taken]
        assert dict(taken[-1].point) == found.point
        assert taken[-1].objective == found.objective


def test_a_budget_of_one_stays_at_the_start():
    found, table = search(coupled(1), budget=1)
    assert (found.point, found.evaluations, len(table.asked)) == (START, 1, 1)
    assert found.objective == found.start_objective


def test_a_choice_must_be_better_by_the_tolerance():
    values = dict.fromkeys(map(key, POINTS), 1.0)
    values[key({**START, "b": 0.5})] = 0.95
    assert search(values, tolerance=0.1)[0].point == START
    assert search(values, tolerance=0.04)[0].point == {**START, "b": 0.5}


@pytest.mark.parametrize("nothing", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("tolerance", [0.0, 0.01])
def test_what_is_not_finite_never_wins(nothing, tolerance):
    values = dict.fromkeys(map(key, POINTS), nothing)
    values[key(START)] = 5.0
    found, _ = search(values, tolerance=tolerance)
    assert (found.point, found.objective) == (START, 5.0)


@pytest.mark.parametrize("nothing", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("tolerance", [0.0, 0.01])
def test_from_a_start_that_is_not_finite_the_search_finds_out(nothing, tolerance):
    values = dict.fromkeys(map(key, POINTS), 5.0)
    values[key(START)] = nothing
    values[key({**START, "a": 0.5, "c": "y"})] = 4.0
    found, _ = search(values, tolerance=tolerance)
    assert found.objective == 4.0
    assert found.start_objective == math.inf


def test_the_same_table_gives_the_same_steps_and_the_start_is_left_alone():
    start = dict(START)
    first, second = (
        coordinate_search(start, CHOICES, Table(coupled(3)), budget=12) for _ in range(2)
    )
    assert first == second
    assert start == START


def test_what_cannot_be_searched_is_refused():
    with pytest.raises(PruningError, match="says nothing of 'c'"):
        coordinate_search({"a": 0.0, "b": 0.0}, CHOICES, Table({}), budget=3)
    with pytest.raises(PruningError, match="budget of 1 evaluation or more, found 0"):
        coordinate_search(START, CHOICES, Table({}), budget=0)


def exact_probability(candidate, plain, positions=None):
    """Over every one of the n^n draws; a mean over no position is infinite."""
    size = len(candidate)
    total = 0.0
    for draw in product(range(size), repeat=size):
        means = []
        for values, counts in zip((candidate, plain), positions or [[1] * size] * 2, strict=True):
            count = sum(counts[index] for index in draw)
            means.append(sum(values[index] for index in draw) / count if count else math.inf)
        total += 1.0 if means[0] < means[1] else 0.5 if means[0] == means[1] else 0.0
    return total / size**size


@pytest.mark.parametrize(
    ("candidate", "plain"),
    [
        ([1.0, 2.0, 3.0, 4.0], [1.5, 1.0, 4.0, 4.0]),
        ([1.0, 3.0, 1.0, 3.0], [2.0, 2.0, 2.0, 2.0]),  # many ties
        ([2.5, 1.0, 2.0], [2.25, 1.5, 2.5]),
        ([5.0, 5.0, 5.0, 5.0, 5.0], [4.0, 6.0, 5.5, 5.25, 4.75]),
    ],
)
def test_the_probability_is_that_of_all_draws(candidate, plain):
    exact = exact_probability(candidate, plain)
    assert 0.05 < exact < 0.95
    found = probability_lower(candidate, plain, draws=40_000)
    # Four standard errors of the share, at most.
    assert found == pytest.approx(exact, abs=4 * 0.5 / math.sqrt(40_000))
    both = found + probability_lower(plain, candidate, draws=40_000)
    assert both == pytest.approx(1)


def test_sums_over_positions_are_compared_by_their_pooled_means():
    """Not by the mean of each item's mean, where an item of one position weighs like a long one."""
    candidate, plain = [1.0, 8.0, 0.0, 6.0], [2.0, 7.0, 0.0, 6.0]
    positions = ([1, 10, 0, 8], [4, 8, 0, 8])
    exact = exact_probability(candidate, plain, positions)
    found = probability_lower(candidate, plain, positions=positions, draws=40_000)
    assert found == pytest.approx(exact, abs=4 * 0.5 / math.sqrt(40_000))
    assert abs(exact - exact_probability(candidate, plain)) > 0.05
    assert confirmed(candidate, plain, positions=positions, seed=2)[1] == probability_lower(
        candidate, plain, positions=positions, seed=2
    )


def test_a_draw_without_positions_is_worse_than_every_other():
    assert probability_lower([0.0], [9.0], positions=([0], [2])) == 0.0
    assert probability_lower([9.0], [0.0], positions=([2], [0])) == 1.0
    assert probability_lower([0.0], [0.0], positions=([0], [0])) == 0.5


def test_ties_count_half_whatever_the_numbers():
    """0.1 and 0.7 are no sums of powers of two: rounded on one side only they would differ."""
    values = [0.1, 0.7, 1 / 3]
    assert probability_lower(values, values) == 0.5
    assert probability_lower([2.0], [1.0]) == 0.0
    assert probability_lower([0.1], [0.2]) == 1.0


def test_what_is_not_finite_confirms_nothing():
    assert probability_lower([math.nan, 1.0], [2.0, math.nan], draws=50) <= CONFIDENCE
    assert probability_lower([math.inf], [2.0]) == 0.0
    assert probability_lower([math.inf], [math.inf]) == 0.5


def test_confirmed_is_sure_enough_and_the_seed_decides_the_draws():
    plain = [1.0, 1.2, 0.9, 1.1, 1.0, 1.3]
    assert confirmed([value - 0.1 for value in plain], plain) == (True, 1.0)
    mixed = [1.1, 1.2, 1.0, 1.0, 1.1, 1.2]
    sure, probability = confirmed(mixed, plain, seed=1)
    assert not sure
    assert probability == probability_lower(mixed, plain, seed=1)
    assert 0.1 < probability < CONFIDENCE
    assert len({probability_lower(mixed, plain, seed=seed) for seed in range(5)}) > 1


@pytest.mark.parametrize(("candidate", "plain"), [([], []), ([1.0], [1.0, 2.0])])
def test_pairs_that_are_none_are_refused(candidate, plain):
    with pytest.raises(PruningError, match="as many values of both, and some"):
        probability_lower(candidate, plain)
