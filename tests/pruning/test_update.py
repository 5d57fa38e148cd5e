import pytest
import torch
from torch import nn

from fpspeech.pruning import (
    PruningConfig,
    PruningError,
    apply_masks,
    make_masks,
    match_batch_norms,
    measure_moments,
    observe,
    select_layers,
)
from fpspeech.pruning.update import Moments, matched_moments


class Block(nn.Module):
    """Two convolutions beside a shortcut, as in a ResNet."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.one = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm_one = nn.BatchNorm2d(outputs)
        self.two = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm_two = nn.BatchNorm2d(outputs)
        self.short = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.norm_short = nn.BatchNorm2d(outputs)

    def forward(self, x):
        y = self.norm_two(self.two(self.norm_one(self.one(x)).relu()))
        return (y + self.norm_short(self.short(x))).relu()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    first = nn.Conv2d(3, 6, 3, bias=False)
    made = nn.Sequential(first, nn.BatchNorm2d(6), nn.ReLU(), Block(6, 8), Block(8, 8))
    for module in made.modules():  # moments of "all classes", unlike those of the user
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    return made.eval()


IMAGES = torch.randn(10, 3, 9, 9, generator=torch.Generator().manual_seed(1)) + 0.5


def pruned(model: nn.Module, sparsity: float = 0.6):
    layers = select_layers(model, {"0": "first"}).layers
    statistics = observe(model, [IMAGES], layers)
    return layers, make_masks(layers, statistics, PruningConfig(sparsity=sparsity))


def batches(model: nn.Module, size: int):
    return [lambda x=x: model(x) for x in IMAGES.split(size)]


def normalised(model: nn.Module) -> dict[str, torch.Tensor]:
    """What every BatchNorm puts out before scale and shift, by brute force: (C, positions)."""
    seen = {}

    def hook(name):
        def keep(norm, args):
            x = args[0].transpose(0, 1).flatten(1).double()
            shift = norm.running_mean.double()[:, None]
            seen[name] = (x - shift) / (norm.running_var.double()[:, None] + norm.eps).sqrt()

        return keep

    handles = [
        module.register_forward_pre_hook(hook(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    with torch.no_grad():
        model(IMAGES)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("size", [10, 3, 1])
def test_matched_channels_have_the_mean_and_variance_of_the_dense_ones(size):
    model = network()
    dense = normalised(model)
    layers, masks = pruned(model)
    values = match_batch_norms(model, layers, masks, batches(model, size))
    with apply_masks(layers, masks, network=model, values=values):
        matched = normalised(model)
    with apply_masks(layers, masks):
        unmatched = normalised(model)
    for name, expected in dense.items():
        found = matched[name]
        torch.testing.assert_close(found.mean(1), expected.mean(1), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.var(1), expected.var(1), atol=1e-5, rtol=1e-4)
        if name != "1":
            assert not torch.allclose(unmatched[name].var(1), expected.var(1), rtol=0.02)


def test_the_size_of_the_batches_does_not_matter():
    model = network()
    layers, masks = pruned(model)
    together, apart = (
        match_batch_norms(model, layers, masks, batches(model, size)) for size in (10, 3)
    )
    assert together.keys() == apart.keys()
    for name, value in together.items():
        torch.testing.assert_close(apart[name], value, atol=1e-5, rtol=1e-4)


def test_a_single_batch_takes_two_passes_and_several_as_many_as_there_are_norms_in_line():
    model = network()
    layers, masks = pruned(model)
    calls = []

    def counted(size):
        return [lambda x=x: (calls.append(len(x)), model(x)) for x in IMAGES.split(size)]

    match_batch_norms(model, layers, masks, counted(10))
    assert calls == [10, 10]  # dense, then pruned
    calls.clear()
    match_batch_norms(model, layers, masks, counted(5))
    assert len(calls) <= 2 + 2 * 7


def test_nothing_is_changed_and_what_pruning_does_not_reach_is_left_out():
    model = network().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layers, masks = pruned(model)
    values = match_batch_norms(model, layers, masks, batches(model, 4))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert not any(name.startswith("1.") for name in values)  # behind the excluded convolution
    assert {name.rsplit(".", 1)[1] for name in values} == {"running_mean", "running_var"}


def test_no_zeros_need_no_values():
    model = network()
    layers, masks = pruned(model, sparsity=0.0)
    assert match_batch_norms(model, layers, masks, batches(model, 4)) == {}


def test_a_network_without_batch_norm_needs_no_values():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    layers, masks = pruned(model)
    assert match_batch_norms(model, layers, masks, batches(model, 4)) == {}


@pytest.mark.parametrize("which", ["dense", "pruned"])
def test_a_dead_channel_keeps_its_variance_and_matches_its_mean(which):
    norm = nn.BatchNorm2d(2)
    norm.running_mean.copy_(torch.tensor([0.5, 0.5]))
    alive = Moments(9, torch.tensor([1.0, 1.0]).double(), torch.tensor([2.0, 2.0]).double())
    dead = Moments(9, torch.tensor([0.2, 0.2]).double(), torch.tensor([0.0, 0.5]).double())
    dense, now = (dead, alive) if which == "dense" else (alive, dead)
    mean, variance = matched_moments(norm, dense, now)
    assert variance[0] == norm.running_var[0]
    assert torch.isfinite(mean).all()
    assert torch.isfinite(variance).all()
    before = (dense.mean - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    after = (now.mean - mean) / (variance + norm.eps).sqrt()
    torch.testing.assert_close(after, before.double())


def test_a_channel_whose_weights_are_all_pruned_gives_finite_values():
    model = network()
    layers, masks = pruned(model)
    name = "3.one"
    masks[name] = masks[name].clone()
    masks[name][:, 2] = False
    values = match_batch_norms(model, layers, masks, batches(model, 4))
    assert all(torch.isfinite(value).all() for value in values.values())
    norm = model[3].norm_one
    assert values["3.norm_one.running_var"][2] == norm.running_var[2]


def test_moments_stream_like_all_values_at_once():
    model = network()
    found = measure_moments(model, batches(model, 3))
    with torch.no_grad():
        values = model[0](IMAGES).transpose(0, 1).flatten(1).double()
    assert found["1"].count == values.shape[1]
    torch.testing.assert_close(found["1"].mean, values.mean(1), atol=1e-6, rtol=1e-6)
    expected = values.var(1, correction=0)
    torch.testing.assert_close(found["1"].variance, expected, atol=1e-6, rtol=1e-6)


def test_errors_say_what_is_wrong():
    model = network()
    layers, masks = pruned(model)
    with pytest.raises(PruningError, match="data is empty"):
        match_batch_norms(model, layers, masks, [])
    with pytest.raises(PruningError, match="NaN or infinite"):
        match_batch_norms(model, layers, masks, [lambda: model(IMAGES * float("nan"))])
    shared = nn.BatchNorm2d(3)
    twice = nn.Sequential(nn.Conv2d(3, 3, 1), shared, nn.Conv2d(3, 3, 1), shared).eval()
    layers, masks = pruned_all(twice)
    with pytest.raises(PruningError, match="runs twice"):
        match_batch_norms(twice, layers, masks, batches(twice, 4))


def pruned_all(model: nn.Module):
    layers = select_layers(model).layers
    return layers, make_masks(layers, {}, PruningConfig(sparsity=0.5, score="magnitude"))


def test_other_values_are_in_force_while_moments_are_matched():
    model = network()
    layers, masks = pruned(model)
    values = {"3.norm_one.bias": torch.full((8,), 0.7)}  # such as a compensated bias
    alone = match_batch_norms(model, layers, masks, batches(model, 4))
    dense = normalised(model)
    found = match_batch_norms(model, layers, masks, batches(model, 4), values=values)
    assert not torch.equal(found["3.norm_two.running_mean"], alone["3.norm_two.running_mean"])
    with apply_masks(layers, masks, network=model, values={**values, **found}):
        matched = normalised(model)
    for name, expected in dense.items():
        torch.testing.assert_close(matched[name].mean(1), expected.mean(1), atol=1e-5, rtol=1e-4)
