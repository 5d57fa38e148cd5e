"""Rows solved together by conjugate gradients, against a direct solve of each alone."""

import torch

from fpspeech.pruning import conjugate_gradients
from fpspeech.pruning.conjugate_gradients import solve_on_sets


def problem(rows=7, size=40, seed=0):
    """A badly conditioned matrix, as activations give, with targets, a start and sets."""
    generator = torch.Generator().manual_seed(seed)
    few = torch.randn(200, size // 4, generator=generator).double()
    x = few @ torch.randn(size // 4, size, generator=generator).double()
    matrix = x.T @ x / 200
    matrix.diagonal().add_(0.01 * matrix.diagonal().mean())
    targets = torch.randn(rows, size, generator=generator).double() @ matrix
    start = torch.randn(rows, size, generator=generator).double()
    sets = torch.rand(rows, size, generator=generator) < 0.5
    return matrix, targets, start, sets


def slow(matrix, targets, sets):
    expected = torch.zeros_like(targets)
    for row, (target, kept) in enumerate(zip(targets, sets, strict=True)):
        columns = kept.nonzero().squeeze(1)
        if len(columns):
            system = matrix[columns][:, columns]
            expected[row, columns] = torch.linalg.solve(system, target[columns])
    return expected


def energy(matrix, change):
    return ((change @ matrix) * change).sum(1)


def test_every_row_is_solved_on_its_own_set():
    matrix, targets, start, sets = problem()
    sets[2] = False
    sets[3] = True
    expected = slow(matrix, targets, sets)
    found = solve_on_sets(matrix, torch.linalg.inv(matrix), targets, start, sets).double()
    assert not found[~sets].any()
    # What is left is small in the norm that is minimised, against what there was at the start.
    before = energy(matrix, start.masked_fill(~sets, 0) - expected)
    left = energy(matrix, found - expected)
    assert (left <= 1e-5 * before).all()
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max()))


def test_rows_in_parts_come_to_the_same(monkeypatch):
    matrix, targets, start, sets = problem()
    inverse = torch.linalg.inv(matrix)
    together = solve_on_sets(matrix, inverse, targets, start, sets)
    monkeypatch.setattr(conjugate_gradients, "ROWS_VALUES", 80)
    apart = solve_on_sets(matrix, inverse, targets, start, sets)
    torch.testing.assert_close(apart, together, rtol=1e-2, atol=1e-2 * float(together.abs().max()))


def test_a_start_that_solves_it_stays():
    matrix, targets, _, sets = problem()
    sets[:] = True
    start = torch.linalg.solve(matrix, targets.T).T
    found = solve_on_sets(matrix, torch.linalg.inv(matrix), targets, start, sets)
    torch.testing.assert_close(found.double(), start, rtol=1e-3, atol=1e-3)


def test_the_matrix_itself_is_solved_in_few_rounds(monkeypatch):
    """With nothing pruned the preconditioner is the inverse: one round, and one more to round."""
    matrix, targets, start, sets = problem()
    sets[:] = True
    monkeypatch.setattr(conjugate_gradients, "MOST_ROUNDS", 2)
    found = solve_on_sets(matrix, torch.linalg.inv(matrix), targets, start, sets).double()
    expected = slow(matrix, targets, sets)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_no_rows_are_no_work():
    matrix, targets, start, sets = problem(rows=0)
    assert solve_on_sets(matrix, torch.linalg.inv(matrix), targets, start, sets).shape == (0, 40)
