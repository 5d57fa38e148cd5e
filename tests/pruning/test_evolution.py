"""Evolution strategies against the formula written slowly, and on functions with known minima."""

import math

import pytest
import torch

from fpspeech.pruning import PruningError
from fpspeech.pruning.evolution import Evolution, evolve


def bowl(target):
    """The distance from a point, squared."""
    return lambda point, number: float((point - target).square().sum())


def slow_descent(objective, dimensions, settings, seed):
    """The formulas of the module's first lines, number by number."""
    generator = torch.Generator().manual_seed(seed)
    point, mean = [0.0] * dimensions, [0.0] * dimensions
    number = 0
    for _ in range(settings.steps):
        gradient = [0.0] * dimensions
        for _ in range(settings.pairs):
            noise = torch.randn(dimensions, generator=generator).tolist()
            ahead = [x + settings.spread * e for x, e in zip(point, noise, strict=True)]
            behind = [x - settings.spread * e for x, e in zip(point, noise, strict=True)]
            slope = objective(torch.tensor(ahead), number) - objective(torch.tensor(behind), number)
            slope /= 2 * settings.spread
            gradient = [
                g + slope * e / settings.pairs for g, e in zip(gradient, noise, strict=True)
            ]
            number += 1
        mean = [
            settings.momentum * m + (1 - settings.momentum) * g
            for m, g in zip(mean, gradient, strict=True)
        ]
        norm = math.sqrt(sum(m * m for m in mean))
        length = settings.length * math.sqrt(dimensions)
        point = [x - length * m / norm for x, m in zip(point, mean, strict=True)]
    return torch.tensor(point)


def test_it_is_the_formula_written_slowly():
    settings = Evolution(steps=4, pairs=3, spread=0.1, length=0.05, momentum=0.7)
    target = torch.tensor([1.0, -2.0, 0.5, 3.0])
    found = evolve(bowl(target), 4, settings, seed=5)
    torch.testing.assert_close(found, slow_descent(bowl(target), 4, settings, 5), atol=1e-4, rtol=0)


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
        return float((point - 0.2).square().sum() + 1000 * chance.double())

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
        return bad if number % 3 == 0 else bowl(target)(point, number)

    found = evolve(objective, 3, Evolution(steps=30, pairs=9, length=0.02))
    assert float((found - target).abs().max()) < 0.1


def test_a_flat_objective_moves_nothing():
    assert evolve(lambda point, number: 1.0, 4, Evolution(steps=2, pairs=2)).tolist() == [0] * 4


def test_steps_are_told_and_the_same_seed_gives_the_same_point():
    told = []
    settings = Evolution(steps=3, pairs=2)
    target = torch.ones(4)
    one = evolve(bowl(target), 4, settings, seed=1, stepped=told.append)
    assert told == [1, 2, 3]
    assert torch.equal(one, evolve(bowl(target), 4, settings, seed=1))
    assert not torch.equal(one, evolve(bowl(target), 4, settings, seed=2))
    assert settings.evaluations == 12


@pytest.mark.parametrize(
    "bad", [{"steps": 0}, {"pairs": 0}, {"spread": 0.0}, {"length": -1.0}, {"momentum": 1.0}]
)
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(PruningError, match=next(iter(bad))):
        Evolution(**bad)
