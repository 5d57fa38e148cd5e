"""Sequential order against a solve by hand, its memory, its stages, and what it leaves behind."""

import gc
import weakref
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import weight_norm as older_weight_norm
from torch.nn.utils.parametrizations import weight_norm

from fpspeech.pruning import (
    PruningConfig,
    PruningError,
    Replay,
    SequentialPruner,
    apply_masks,
    execution_stages,
    prune,
    prune_sequentially,
    select_layers,
)
from fpspeech.pruning.masks import row_mask
from fpspeech.pruning.replay import run_up_to

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")


def mlp(sizes=(6, 16, 12, 4), seed=0) -> nn.Sequential:
    torch.manual_seed(seed)
    parts = []
    for inputs, outputs in pairwise(sizes):
        parts += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*parts[:-1]).eval()


def batches_of(*shape, count=4, seed=1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) for _ in range(count)]


def config(**changes) -> PruningConfig:
    changes = {"sparsity": 0.5, "product_stride": 1, "order": "sequential"} | changes
    return PruningConfig(**changes)


def solved(weight, mask, x, x_pruned, ridge):
    """min ‖Wx − W'x̃‖²/n + λ‖W − W'‖² over kept weights: one tall system a row, (O, I), (n, I)."""
    x, x_pruned, weight = x.double(), x_pruned.double(), weight.double()
    n = x.shape[0]
    damping = ridge * x_pruned.square().mean()
    found = torch.zeros_like(weight)
    for row in range(weight.shape[0]):
        kept = mask[row].nonzero().squeeze(1)
        tall = torch.cat([x_pruned[:, kept] / n**0.5, damping**0.5 * torch.eye(len(kept))])
        right = torch.cat([x @ weight[row] / n**0.5, damping**0.5 * weight[row, kept]])
        found[row, kept] = torch.linalg.lstsq(tall, right).solution
    return found


def obs_score(weight, x_pruned):
    moments = (x_pruned.T @ x_pruned / x_pruned.shape[0]).double()
    damped = moments + 0.01 * moments.diagonal().mean() * torch.eye(len(moments)).double()
    return weight.abs() / torch.linalg.inv(damped).diagonal().sqrt()


def unfolded(conv: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """All positions of a convolution's input, (groups, n, inputs)."""
    if isinstance(conv, nn.Conv1d):
        x = x.unsqueeze(2)
    one = isinstance(conv, nn.Conv1d)
    kernel, stride, padding, dilation = (
        (*((1 if name in ("kernel_size", "stride", "dilation") else 0,) if one else ()), *value)
        for name in ("kernel_size", "stride", "padding", "dilation")
        for value in [getattr(conv, name)]
    )
    columns = F.unfold(x, kernel, dilation, padding, stride)  # (B, C·k, L)
    columns = columns.reshape(x.shape[0], conv.groups, -1, columns.shape[-1])
    return columns.permute(1, 0, 3, 2).reshape(conv.groups, -1, columns.shape[2])


def by_hand(network, rows_of, data, settings):
    """Layer after layer with all inputs in memory: (masks, weights) by name."""
    dense = {layer.name: layer.weight().clone() for layer in select_layers(network).layers}

    def inputs(layer, weights):
        seen = []
        others = [other for other in select_layers(network).layers if other.name in weights]
        handle = layer.module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        stored = [{key: each.clone() for key, each in other.stored().items()} for other in others]
        for other in others:
            other.assign(weights[other.name])
        with torch.no_grad():
            network(data)
        for other, before in zip(others, stored, strict=True):
            other.put_back(before)
        handle.remove()
        return rows_of(layer.module, seen[0])  # (groups, n, inputs)

    masks, weights = {}, {}
    for layer in select_layers(network).layers:  # registered in order of execution
        x, x_pruned = inputs(layer, {}), inputs(layer, weights)
        groups = []
        for group in range(x.shape[0]):
            w = dense[layer.name][group]
            mask = row_mask(obs_score(w, x_pruned[group]).unsqueeze(0), settings.sparsity)[0]
            new = solved(w, mask, x[group], x_pruned[group], settings.ridge)
            groups.append((mask, new.float().half().float()))
        masks[layer.name] = torch.stack([mask for mask, _ in groups])
        weights[layer.name] = torch.stack([new for _, new in groups])
    return masks, weights


def linear_rows(module, inputs):
    return inputs.reshape(1, -1, inputs.shape[-1])


def assert_equals_by_hand(network, data, rows_of, settings):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    masks, weights = by_hand(network, rows_of, torch.cat(data), settings)
    pruned = prune(network, data, settings)
    assert list(pruned.masks) == list(masks)
    for name, mask in masks.items():
        assert torch.equal(pruned.masks[name], mask), name
        torch.testing.assert_close(
            pruned.kept[name].float(), weights[name][mask], rtol=5e-3, atol=1e-3, msg=name
        )
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    return pruned


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.75])
def test_a_perceptron_equals_a_solve_by_hand_with_all_inputs_in_memory(sparsity):
    network, data = mlp(), batches_of(9, 6)
    assert_equals_by_hand(network, data, linear_rows, config(sparsity=sparsity))


class Convolutions(nn.Module):
    """Strides, padding, groups, dilation and a weight norm, one behind the other."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first = nn.Conv2d(2, 8, (3, 2), stride=(2, 1), padding=(1, 0))
        self.second = nn.Conv2d(8, 12, 3, padding=1, groups=2, bias=False)
        self.third = weight_norm(nn.Conv1d(12, 8, 3, stride=2, dilation=2, padding=2, groups=4))
        self.fourth = nn.Conv1d(8, 6, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.second(F.gelu(self.first(images))))
        return self.fourth(torch.tanh(self.third(hidden.mean(2))))


def test_convolutions_equal_a_solve_by_hand():
    network, data = Convolutions().eval(), batches_of(3, 2, 8, 15, count=5)
    assert_equals_by_hand(network, data, unfolded, config())


def test_a_layer_makes_up_for_those_before_it():
    """Behind pruned layers the outputs come nearer to the dense ones than in independent order."""
    network, data = mlp((12, 32, 32, 32, 8)), batches_of(200, 12)
    with torch.no_grad():
        dense = network(torch.cat(data))
        errors = {}
        for order in ("independent", "sequential"):
            with prune(network, data, config(order=order, sparsity=0.6)).apply():
                errors[order] = float((network(torch.cat(data)) - dense).square().mean())
    assert errors["sequential"] < 0.9 * errors["independent"]


@pytest.mark.parametrize("update", ["least_squares", "sparsegpt", "alps"])
def test_every_update_makes_up_for_the_layers_before(update):
    network, data = mlp((12, 32, 32, 8)), batches_of(200, 12)
    with torch.no_grad():
        dense = network(torch.cat(data))
        errors = []
        for order in ("independent", "sequential"):
            with prune(network, data, config(order=order, sparsity=0.6, update=update)).apply():
                errors.append(float((network(torch.cat(data)) - dense).square().mean()))
    assert errors[1] < errors[0]


def test_biases_keep_the_means_of_the_dense_outputs():
    network, data = mlp((12, 32, 32, 8)), batches_of(200, 12)
    pruned = prune(network, data, config(bias=True))
    assert pruned.values.keys() == {"0.bias", "2.bias", "4.bias"}
    with torch.no_grad():
        dense = network(torch.cat(data)).mean(0)
        with pruned.apply():
            torch.testing.assert_close(network(torch.cat(data)).mean(0), dense, atol=1e-4, rtol=0)


@pytest.mark.parametrize("update", ["none", "least_squares"])
def test_a_single_layer_equals_the_independent_order(update):
    network, data = nn.Sequential(nn.Conv1d(4, 6, 3, stride=2, groups=2)), batches_of(2, 4, 31)
    found = prune(network, data, config(update=update, product_stride=4))
    expected = prune(network, data, config(update=update, product_stride=4, order="independent"))
    assert torch.equal(found.masks["0"], expected.masks["0"])
    assert found.kept.keys() == expected.kept.keys() == ({"0"} if update != "none" else set())
    assert all(torch.equal(found.kept[name], expected.kept[name]) for name in found.kept)


def test_where_nothing_is_pruned_before_a_layer_the_orders_agree():
    network, data = mlp(), batches_of(50, 6)
    with torch.no_grad():
        for layer in select_layers(network).layers:  # so that the stored float16 are the same bits
            layer.assign(layer.weight().half().float())
    settings = {"sparsity": 0.0, "overrides": (("4", 0.5),)}
    found = prune(network, data, config(**settings))
    expected = prune(network, data, config(**settings, order="independent"))
    for name in expected.masks:
        assert torch.equal(found.masks[name], expected.masks[name])
        torch.testing.assert_close(found.kept[name], expected.kept[name], rtol=2e-3, atol=1e-5)
    assert not found.masks["4"].all()


def test_cross_products_are_counted_at_the_positions_of_the_products():
    """With the layers before unchanged, E[x x̃ᵀ] is the Observer's E[xxᵀ], whatever the stride."""
    network, data = Convolutions().eval(), batches_of(2, 2, 9, 21)
    layers = select_layers(network).layers
    found = {}

    class Remembering(SequentialPruner):
        def _run(self, stage, replay, observer, paired):
            super()._run(stage, replay, observer, paired)
            found[stage.names[0]] = (observer, paired)

    replays = [Replay(lambda batch=batch: network(batch)) for batch in data]
    pruner = Remembering(network, layers, config(sparsity=0.0, product_stride=3))
    for layer in layers:
        with torch.no_grad():
            layer.assign(layer.weight().half().float())
    for stage in execution_stages(layers, replays[0]):
        pruner.prune(stage, replays)
    for name in ("second", "third", "fourth"):
        observer, paired = found[name]
        expected = observer.statistics()[name]
        assert paired._sums[name].product_count == expected.product_count
        torch.testing.assert_close(paired.moments()[name], expected.moments, rtol=1e-2, atol=1e-3)


class Attention(nn.Module):
    def __init__(self, size: int = 8) -> None:
        super().__init__()
        self.out = nn.Linear(size, size)  # registered first, called last
        self.q, self.k, self.v = (nn.Linear(size, size, bias=False) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        attention = F.scaled_dot_product_attention(self.q(x), self.k(input=x), self.v(x[:]))
        return x + self.out(attention)


class Network(nn.Module):
    """Two blocks, and a layer that no input reaches."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.unused = nn.Linear(3, 3)
        self.blocks = nn.ModuleList([Attention(), Attention()])
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def test_stages_follow_execution_and_share_an_input():
    network = Network().eval()
    layers = select_layers(network).layers
    replay = Replay(lambda: network(torch.randn(2, 5, 8)))
    stages = execution_stages(layers, replay)
    assert [stage.names for stage in stages] == [
        ("blocks.0.q", "blocks.0.k", "blocks.0.v"),
        ("blocks.0.out",),
        ("blocks.1.q", "blocks.1.k", "blocks.1.v"),
        ("blocks.1.out",),
        ("head",),
        ("unused",),
    ]
    assert [stage.calls for stage in stages] == [3, 1, 3, 1, 1, None]


def test_stages_can_be_given_by_pattern():
    network, data = Network().eval(), batches_of(2, 5, 8)
    layers = select_layers(network, {"unused": "not used"}).layers
    windows = [Replay(lambda batch=batch: network(batch)) for batch in data]
    blocks = [["blocks.0.*"], ["blocks.1.*", "head"]]
    stages = execution_stages(layers, windows[0], blocks)
    assert [len(stage.layers) for stage in stages] == [4, 5]
    assert [stage.calls for stage in stages] == [4, 5]
    found = prune_sequentially(network, layers, lambda: windows, config(), stages=blocks)
    alone = prune_sequentially(network, layers, lambda: windows, config())
    assert list(found.masks) == list(alone.masks) == [layer.name for layer in layers]
    assert torch.equal(found.kept["blocks.0.q"], alone.kept["blocks.0.q"])
    assert not torch.equal(found.kept["head"], alone.kept["head"])


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([["0", "2"]], "no stage holds 4"),
        ([["0"], ["*"]], "0 stands in stage 1 and in stage 2"),
        ([["0", "2", "4"], ["7"]], "stage 2 names '7', which is no pruned layer"),
    ],
)
def test_stages_that_do_not_fit_are_refused(stages, message):
    network = mlp()
    layers = select_layers(network).layers
    windows = [Replay(lambda: network(torch.ones(2, 6)))]
    with pytest.raises(PruningError, match=message):
        prune_sequentially(network, layers, lambda: windows, config(), stages=stages)


def test_passes_end_at_the_last_layer_of_their_stage():
    network = mlp()
    ran = []
    for module in network:
        module.register_forward_hook(lambda module, args, output: ran.append(module))
    layers = select_layers(network).layers
    replay = Replay(lambda: network(torch.ones(2, 6)))
    stages = execution_stages(layers, replay)
    ran.clear()
    run_up_to(stages[1], replay)
    assert ran == [network[0], network[1]]


def test_passes_through_a_layer_that_runs_twice_go_on_to_their_end():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.shared(self.shared(x).tanh()))

    network, data = Twice().eval(), batches_of(7, 4)
    stages = execution_stages(select_layers(network).layers, Replay(lambda: network(data[0])))
    assert [(stage.names, stage.calls) for stage in stages] == [(("shared",), None), (("head",), 1)]
    counts = []
    network.shared.register_forward_pre_hook(lambda *_: counts.append(1))
    found = prune(network, data, config())
    # 1 recorded, 4 + 4 + 4 windows (once for the first stage, dense and pruned for the second)
    assert len(counts) == 2 * (1 + 4 + 4 + 4)
    assert found.masks.keys() == {"shared", "head"}


@pytest.mark.parametrize(
    ("update", "expected"), [("least_squares", 1 + 4 * 5), ("none", 1 + 4 * 3)]
)
def test_the_number_of_passes(update, expected):
    """One finds the stages; then a window once, for all but the first twice where x is needed."""
    network, data = mlp(), batches_of(5, 6)
    passes = []
    network[0].register_forward_pre_hook(lambda *_: passes.append(1))
    prune(network, data, config(update=update))
    assert len(passes) == expected


def test_memory_holds_the_inputs_of_one_window():
    """However many windows there are: those of earlier ones are gone when the next is made."""
    network = mlp((6, 16, 16, 4))
    alive: list[weakref.ref] = []
    most = []

    def windows():
        for number in range(6):
            batch = torch.randn(3, 6, generator=torch.Generator().manual_seed(number))
            gc.collect()
            most.append(len({id(each()) for each in alive} - {id(None)}))
            yield Replay(lambda batch=batch: network(batch))

    def watch(module, args):
        alive.append(weakref.ref(args[0]))

    for module in network:
        module.register_forward_pre_hook(watch)
    prune_sequentially(network, select_layers(network).layers, windows, config())
    assert len(most) == 3 * 6
    # The window that has just run is still in the loop's hand: its batch, but no hidden state.
    assert max(most) == 1


def test_inputs_that_are_written_over_later_are_measured_as_they_were():
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x):
            x = self.a(x)
            y = self.b(x)
            if self.inplace:
                x.mul_(0).add_(y.relu())
            else:
                x = y.relu()
            return self.c(x)

    data = batches_of(30, 6)
    found = []
    for inplace in (True, False):
        network = InPlace().eval()
        network.inplace = inplace
        replays = [Replay(lambda batch=batch, n=network: n(batch)) for batch in data]
        layers = select_layers(network).layers
        stages = [["a"], ["b", "c"]]
        found.append(
            prune_sequentially(network, layers, lambda r=replays: r, config(), stages=stages)
        )
    assert all(torch.equal(found[0].kept[name], found[1].kept[name]) for name in "abc")


class Normed(nn.Module):
    """Both weight norms, a BatchNorm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.a = weight_norm(nn.Conv1d(4, 8, 3), dim=2)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.5)
        self.b = older_weight_norm(nn.Conv1d(8, 8, 3), dim=0)
        self.c = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.b(self.drop(torch.relu(self.norm(self.a(x))))).mean(-1))


def test_the_network_is_restored_bit_for_bit_and_the_same_bits_come_again():
    network, data = Normed(), batches_of(4, 4, 20)
    network.train()
    network.norm.eval()
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    places = {name: tensor.data_ptr() for name, tensor in network.state_dict().items()}
    plain = network.b.weight.clone()  # a plain attribute under the older weight norm
    first, again = (prune(network, data, config()) for _ in range(2))
    for name in first.masks:
        assert torch.equal(first.masks[name], again.masks[name])
        assert torch.equal(first.kept[name], again.kept[name])
    after = network.state_dict()
    assert all(torch.equal(state[name], after[name]) for name in state)
    assert {name: tensor.data_ptr() for name, tensor in after.items()} == places
    assert torch.equal(network.b.weight, plain)
    flags = [module.training for module in (network, network.drop, network.norm)]
    assert flags == [True, True, False]
    network(data[0]).sum().backward()  # nothing is left over from inference mode
    with first.apply():
        for layer in select_layers(network).layers:
            assert not layer.weight()[~first.masks[layer.name]].any()


@pytest.mark.parametrize("fails_at", [0, 1, 5])
def test_a_network_is_dense_again_after_an_error(fails_at):
    network, data = mlp(), batches_of(5, 6)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    runs = []

    def run(batch):
        network(batch)

    def windows():
        for batch in data:
            with torch.no_grad():  # between windows the dense weights are in force
                assert torch.equal(network[0].weight, state["0.weight"])
            runs.append(1)
            if len(runs) > fails_at:
                raise KeyboardInterrupt
            yield Replay(lambda batch=batch: run(batch))

    with pytest.raises(KeyboardInterrupt):
        prune_sequentially(network, select_layers(network).layers, windows, config())
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())
    assert not any(module._forward_pre_hooks for module in network)


def test_a_run_goes_on_from_its_finished_stages():
    network, data = mlp(), batches_of(9, 6)
    layers = select_layers(network).layers
    replays = [Replay(lambda batch=batch: network(batch)) for batch in data]
    stages = execution_stages(layers, replays[0])
    whole = SequentialPruner(network, layers, config())
    half = SequentialPruner(network, layers, config())
    for stage in stages:
        whole.prune(stage, replays)
    half.prune(stages[0], replays)
    rest = SequentialPruner(network, layers, config(), half.pruned)
    for stage in stages[1:]:
        rest.prune(stage, replays)
    assert whole.pruned.masks.keys() == rest.pruned.masks.keys()
    for name, kept in whole.pruned.kept.items():
        assert torch.equal(kept, rest.pruned.kept[name])


def test_only_valid_positions_count_in_both_runs():
    """Garbage behind the valid frames changes nothing."""
    network = mlp((6, 16, 12, 4))
    generator = torch.Generator().manual_seed(0)
    clean = [torch.randn(2, 7, 6, generator=generator) for _ in range(3)]
    spoiled = [batch.clone() for batch in clean]
    for batch in spoiled:
        batch[0, 4:] = 100.0
        batch[1, 6:] = -100.0
    found = []
    for data in (clean, spoiled):
        replays = [Replay(lambda b=batch: network(b), lambda name: [4, 6]) for batch in data]
        layers = select_layers(network).layers
        found.append(prune_sequentially(network, layers, lambda r=replays: r, config()))
    for name in found[0].kept:
        assert torch.equal(found[0].kept[name], found[1].kept[name])


def test_layers_too_wide_for_products_keep_their_weights(monkeypatch):
    monkeypatch.setattr("fpspeech.pruning.least_squares.PRODUCT_VALUES", 12 * 12)
    network, data = mlp((6, 16, 12, 4)), batches_of(9, 6)
    found = prune(network, data, config())
    assert found.masks.keys() == {"0", "2", "4"}
    assert found.kept.keys() == {"0", "4"}  # 16 inputs are too many


def test_errors_say_what_to_do():
    network, data = mlp(), batches_of(3, 6)
    with pytest.raises(PruningError, match=r"expected a list of batches.*found generator"):
        prune(network, (batch for batch in data), config())
    with pytest.raises(PruningError, match="no batch to observe"):
        prune(network, [], config())
    with pytest.raises(PruningError, match="'global' compares the weights of all layers"):
        config(group="global")
    with pytest.raises(PruningError, match="use the shrinkage 'none' or the order"):
        config(shrinkage="auto")
    with pytest.raises(PruningError, match="no order is named 'backwards'"):
        config(order="backwards")
    with pytest.raises(PruningError, match="no pruned layer is named 'x'"):
        prune(network, data, config(overrides=(("x", 0.5),)))
    layers = select_layers(network).layers
    masks = {layer.name: torch.ones(layer.shape, dtype=torch.bool) for layer in layers}
    with apply_masks(layers, masks), pytest.raises(PruningError, match="0 carries a mask already"):
        prune(network, data, config())


def test_a_pass_that_does_not_repeat_itself_is_refused():
    network = mlp()
    layers = select_layers(network).layers
    sizes = iter(range(2, 100))
    with pytest.raises(PruningError, match=r"2 took in \(.*expected a pass that repeats itself"):
        prune_sequentially(
            network, layers, lambda: [Replay(lambda: network(torch.ones(next(sizes), 6)))], config()
        )


def test_a_layer_without_input_is_named():
    network, data = Network().eval(), batches_of(2, 5, 8)
    with pytest.raises(PruningError, match="unused saw no input"):
        prune(network, data, config())
    found = prune(network, data, config(score="magnitude", update="none"))
    assert not found.masks["unused"].all()
