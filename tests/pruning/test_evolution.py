"""Evolution strategies against the formula written slowly, and on functions with known minima."""

import math

import pytest
import torch

from fpspeech.pruning import PruningError
from fpspeech.pruning.evolution import Evolution, evolve


def bowl(target):
    """The distance of points from a target, squared."""
    return lambda points, number: (points - target).square().sum(1)


def slow_descent(objective, dimensions, settings, seed, directions):
    """The formulas of the module's first lines, number by number."""
    generator = torch.Generator().manual_seed(seed)
    point, mean = [0.0] * dimensions, [0.0] * dimensions
    number = 0
    for step in range(settings.steps):
        gradient = [0.0] * dimensions
        total = sum(directions(number + pair) for pair in range(settings.pairs))
        for _ in range(settings.pairs):
            drawn = torch.randn(directions(number), dimensions, generator=generator).tolist()
            ahead = [
                [x + settings.spread * e for x, e in zip(point, noise, strict=True)]
                for noise in drawn
            ]
            behind = [
                [x - settings.spread * e for x, e in zip(point, noise, strict=True)]
                for noise in drawn
            ]
            before = objective(torch.tensor(ahead), number).tolist()
            after = objective(torch.tensor(behind), number).tolist()
            for noise, one, other in zip(drawn, before, after, strict=True):
                slope = (one - other) / (2 * settings.spread)
                gradient = [g + slope * e / total for g, e in zip(gradient, noise, strict=True)]
            number += 1
        mean = [
            settings.momentum * m + (1 - settings.momentum) * g
            for m, g in zip(mean, gradient, strict=True)
        ]
        norm = math.sqrt(sum(m * m for m in mean))
        length = settings.length * (settings.steps - step) / settings.steps * math.sqrt(dimensions)
        point = [x - length * m / norm for x, m in zip(point, mean, strict=True)]
    return torch.tensor(point)


def test_it_is_the_formula_written_slowly():
    settings = Evolution(steps=4, pairs=3, spread=0.1, length=0.05, momentum=0.7)
    targets = torch.tensor([[1.0, -2.0, 0.5, 3.0], [0.5, 1.0, 0.0, -1.0], [2.0, 2.0, 2.0, 2.0]])

    def directions(number):
        return 1 + number % 3

    def objective(points, number):
        """Each of a pair's points has data of its own."""
        return (points - targets[: len(points)]).square().sum(1)

    found = evolve(objective, 4, settings, seed=5, directions=directions)
    slow = slow_descent(objective, 4, settings, 5, directions)
    torch.testing.assert_close(found, slow, atol=1e-4, rtol=0)


def test_more_directions_for_the_same_pairs_come_closer_to_the_gradient():
    target = torch.randn(400, generator=torch.Generator().manual_seed(1))
    settings = Evolution(steps=1, pairs=20)
    closeness = [
        float(
            torch.cosine_similarity(
                evolve(bowl(target), 400, settings, directions=lambda _, n=n: n), target, dim=0
            )
        )
        for n in (1, 20)
    ]
    assert closeness[1] > 2 * closeness[0]


def test_the_mean_of_many_pairs_is_the_gradient():
    """One step from the origin of a bowl goes straight towards its middle."""
    target = torch.randn(6, generator=torch.Generator().manual_seed(0))
    settings = Evolution(steps=1, pairs=4000, length=0.1)
    found = evolve(bowl(target), 6, settings)
    assert float(torch.cosine_similarity(found, target, dim=0)) > 0.999
    assert float(found.norm()) == pytest.approx(0.1 * math.sqrt(6), rel=1e-4)


def test_it_comes_down_to_the_minimum_of_many_coordinates():
    target = 0.1 * torch.randn(300, generator=torch.Generator().manual_seed(1))
    settings = Evolution(steps=60, pairs=40, spread=0.03, length=0.01)
    found = evolve(bowl(target), 300, settings)
    assert float((found - target).norm()) < 0.5 * float(target.norm())


def test_both_values_of_a_pair_are_taken_on_the_same_data():
    """Chances of the data, far larger than what is looked for, are the same for both."""
    numbers = []

    def objective(point, number):
        numbers.append(number)
        chance = torch.randn((), generator=torch.Generator().manual_seed(number))
        return (point - 0.2).square().sum(1) + 1000 * chance.double()

    settings = Evolution(steps=30, pairs=10, length=0.02)
    found = evolve(objective, 5, settings)
    assert numbers == [number for number in range(300) for _ in range(2)]
    assert float((found - 0.2).abs().max()) < 0.1


def test_only_the_direction_counts_not_the_scale_of_the_objective():
    target = torch.tensor([0.3, -0.1])
    small = evolve(lambda x, n: 1e-3 * bowl(target)(x, n), 2, Evolution(steps=3))
    large = evolve(lambda x, n: 1e3 * bowl(target)(x, n), 2, Evolution(steps=3))
    torch.testing.assert_close(small, large, atol=1e-4, rtol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_say_nothing(bad):
    target = torch.full((3,), 0.2)

    def objective(point, number):
        return torch.tensor([bad]) if number % 3 == 0 else bowl(target)(point, number)

    found = evolve(objective, 3, Evolution(steps=30, pairs=9, length=0.02))
    assert float((found - target).abs().max()) < 0.1


def test_a_flat_objective_moves_nothing():
    flat = evolve(lambda points, number: torch.ones(1), 4, Evolution(steps=2, pairs=2))
    assert flat.tolist() == [0] * 4


def test_steps_are_told_and_the_same_seed_gives_the_same_point():
    told = []
    settings = Evolution(steps=3, pairs=2)
    target = torch.ones(4)
    one = evolve(bowl(target), 4, settings, seed=1, stepped=lambda *now: told.append(now))
    assert [step for step, _ in told] == [1, 2, 3]
    assert torch.equal(told[-1][1], one)
    assert not torch.equal(told[0][1], one)
    assert torch.equal(one, evolve(bowl(target), 4, settings, seed=1))
    assert not torch.equal(one, evolve(bowl(target), 4, settings, seed=2))


@pytest.mark.parametrize(
    "bad", [{"steps": 0}, {"pairs": 0}, {"spread": 0.0}, {"length": -1.0}, {"momentum": 1.0}]
)
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(PruningError, match=next(iter(bad))):
        Evolution(**bad)
