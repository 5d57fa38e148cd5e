"""Operations against counts by hand, memory against what was allocated, zeros against masks."""

import resource
import sys
import time

import pytest
import torch
from torch import nn

from fpspeech.evaluation import cost as module
from fpspeech.evaluation.cost import count_flops, measure_cost, sparse_flops
from fpspeech.models import load_speech_model
from fpspeech.pruning import PruningError, select_layers

MIB = 2**20
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture(params=["inference", "no_grad", "gradients"])
def mode(request):
    """Where a run happens must not change what it counts as."""
    modes = {
        "inference": torch.inference_mode,
        "no_grad": torch.no_grad,
        "gradients": torch.enable_grad,
    }
    with modes[request.param]():
        yield request.param


def test_a_linear_layer_counts_a_product_and_a_sum_for_each_weight_and_row(mode):
    layer = nn.Linear(7, 5)
    assert count_flops(lambda: layer(torch.randn(3, 4, 7))) == 2 * (3 * 4) * 5 * 7


def test_a_grouped_strided_convolution_counts_what_it_reads_at_each_output(mode):
    layer = nn.Conv1d(6, 4, 3, groups=2, stride=2)
    positions = (11 - 3) // 2 + 1
    assert count_flops(lambda: layer(torch.randn(2, 6, 11))) == 2 * 2 * positions * 4 * (3 * 3)


def test_attention_counts_scores_and_values(mode):
    query, key, value = torch.randn(2, 3, 10, 8), torch.randn(2, 3, 13, 8), torch.randn(2, 3, 13, 8)
    counted = count_flops(lambda: nn.functional.scaled_dot_product_attention(query, key, value))
    assert counted == 2 * (2 * 3) * 10 * 13 * (8 + 8)


def test_attention_written_out_counts_the_same(mode):
    query, key, value = torch.randn(3, 2, 3, 10, 8)

    def by_hand():
        return (query @ key.transpose(-1, -2)).softmax(-1) @ value

    fused = count_flops(lambda: nn.functional.scaled_dot_product_attention(query, key, value))
    assert count_flops(by_hand) == fused


def test_a_weight_normed_convolution_is_counted_in_every_mode(mode):
    layer = nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 4, 3, groups=2), dim=2)
    assert count_flops(lambda: layer(torch.randn(1, 4, 10))) == 2 * 8 * 4 * (2 * 3)


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (lambda a, b: torch.ones(5, 2).addmm_(a[0], b[0]), 2 * 5 * 5 * 2),
        (lambda a, b: torch.ones(3, 5, 2).baddbmm_(a, b), 3 * 2 * 5 * 5 * 2),
        (lambda a, b: a[0] @ b[0, :, 0], 2 * 5 * 5),
        (lambda a, b: torch.linalg.cholesky(a), 3 * 5**3 // 3),
        (lambda a, b: torch.cholesky_inverse(a), 3 * 2 * 5**3 // 3),
        (lambda a, b: torch.cholesky_solve(b, a), 3 * 2 * 5**2 * 2),
        (lambda a, b: torch.linalg.inv(a), 3 * 2 * 5**3),
        (lambda a, b: torch.linalg.solve(a, b), 3 * 2 * 5**3 // 3 + 3 * 2 * 5**2 * 2),
        (lambda a, b: torch.linalg.solve_triangular(a, b, upper=True), 3 * 5**2 * 2),
        (lambda a, b: torch.linalg.eigh(a), 3 * 9 * 5**3),
    ],
)
def test_products_in_place_and_linear_algebra_count_by_their_formulas(run, expected, mode):
    matrices, right = torch.eye(5).repeat(3, 1, 1), torch.ones(3, 5, 2)
    assert count_flops(lambda: run(matrices, right)) == expected


def test_a_backward_pass_counts_twice_the_forward_pass():
    """One product for the weight, one for the input."""
    layer, inputs = nn.Linear(7, 5), torch.randn(4, 7, requires_grad=True)
    forward = count_flops(lambda: layer(inputs))
    assert count_flops(lambda: layer(inputs).sum().backward()) == 3 * forward


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(6, 4, 3),
        nn.Conv1d(6, 4, 3, groups=2, stride=2),
        nn.Conv1d(6, 4, 3, padding=1, bias=False),
        nn.ConvTranspose1d(6, 4, 3, groups=2),
    ],
    ids=str,
)
def test_the_backward_pass_of_a_convolution_counts_twice_the_forward_pass(layer):
    inputs = torch.randn(2, 6, 11, requires_grad=True)
    forward = count_flops(lambda: layer(inputs))
    assert count_flops(lambda: layer(inputs).sum().backward()) == 3 * forward
    frozen = inputs.detach()  # the first layer of a network: no gradient for what it reads
    assert count_flops(lambda: layer(frozen).sum().backward()) == 2 * forward


def test_the_backward_pass_of_attention_counts_five_products():
    query, key, value = (torch.randn(1, 2, 6, 4, requires_grad=True) for _ in range(3))

    def both():
        nn.functional.scaled_dot_product_attention(query, key, value).sum().backward()

    assert count_flops(both) == (2 + 5) * 2 * 2 * 6 * 6 * 4


def test_a_speech_model_counts_as_its_layers_do(tiny_layer):
    """Linear layers and convolutions by positions and weights, attention by frames."""
    model = load_speech_model(tiny_layer, device="cpu")
    window = torch.randn(8_000)
    positions = {}
    layers = select_layers(model.network).layers
    handles = [
        layer.module.register_forward_hook(
            lambda _, inputs, output, layer=layer: positions.__setitem__(
                layer.name, output.numel() // (layer.shape[0] * layer.shape[1])
            )
        )
        for layer in layers
    ]
    frames = model.logits(window).shape[0]
    for handle in handles:
        handle.remove()
    expected = sum(2 * positions[layer.name] * layer.size for layer in layers)
    expected += 2 * 2 * 2 * frames**2 * 16  # layers, products, multiply and add, width 16
    assert count_flops(lambda: model.logits(window)) == expected


def test_products_with_a_pruned_weight_are_left_out():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv1d(4, 6, 3, groups=2), nn.ReLU(), nn.Linear(8, 5))
    layers = select_layers(network).layers
    masks = {layer.name: torch.rand(layer.shape) > 0.7 for layer in layers}
    counted = sparse_flops(lambda: network(torch.randn(2, 4, 10)), layers, masks)
    convolution, linear = (int(masks[layer.name].sum()) for layer in layers)
    assert counted.nonzero == 2 * (2 * 8) * convolution + 2 * (2 * 6) * linear
    assert counted.all == 2 * (2 * 8) * masks["0"].numel() + 2 * (2 * 6) * masks["2"].numel()
    # Without a mask a layer is dense, and the hooks are gone.
    alone = sparse_flops(lambda: network(torch.randn(2, 4, 10)), layers, {"2": masks["2"]})
    assert alone.nonzero == 2 * (2 * 8) * masks["0"].numel() + 2 * (2 * 6) * linear
    assert not any(each._forward_hooks for each in network.modules())


def test_a_mask_of_another_shape_is_refused_and_leaves_no_hook():
    network = nn.Sequential(nn.Linear(8, 5), nn.Linear(5, 2))
    layers = select_layers(network).layers
    masks = {"0": torch.ones(1, 5, 8).bool(), "1": torch.ones(1, 2, 8).bool()}
    with pytest.raises(PruningError, match=r"mask of 1 has shape \(1, 2, 8\).*\(1, 2, 5\)"):
        sparse_flops(lambda: network(torch.randn(1, 8)), layers, masks)
    assert not any(each._forward_hooks for each in network.modules())


def test_a_run_is_made_twice_and_timed_without_the_counting():
    made = []
    cost = measure_cost(lambda: made.append(torch.ones(20, 30) @ torch.ones(30, 40)))
    assert len(made) == 2
    assert cost.flops == 2 * 20 * 30 * 40
    assert 0 < cost.seconds < 5


def test_waiting_takes_wall_time_and_no_cpu_time():
    cost = measure_cost(lambda: time.sleep(0.2))
    assert cost.seconds >= 0.2
    assert cost.cpu_seconds < 0.1


@linux
def test_the_peak_is_that_of_the_run_not_of_what_ran_before():
    large = measure_cost(lambda: torch.ones(200 * MIB // 4).sum())
    small = measure_cost(lambda: torch.ones(10 * MIB // 4).sum())
    if small.peak_bytes is None:
        pytest.skip("this system lets no process set its high-water mark back")
    assert 150 * MIB < large.peak_bytes - small.peak_bytes < 250 * MIB


def test_a_peak_below_an_earlier_one_that_cannot_be_set_back_is_not_told(monkeypatch):
    monkeypatch.setattr(module, "_set_back", lambda: False)
    marks = iter([500, 500, 500, 700])
    monkeypatch.setattr(module, "_high_water", lambda: next(marks))
    assert measure_cost(lambda: None).peak_bytes is None
    assert measure_cost(lambda: None).peak_bytes == 700


def test_without_proc_the_high_water_mark_comes_from_the_system(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_PROCESS", tmp_path / "none")
    assert not module._set_back()
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if sys.platform.startswith("linux"):
        assert module._high_water() == pytest.approx(1024 * kibibytes, rel=0.01)
