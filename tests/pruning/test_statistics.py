"""Streaming input statistics equal a slow recount, for every kind of layer."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils import weight_norm as older_weight_norm
from torch.nn.utils.parametrizations import weight_norm

from fpspeech.pruning import (
    InputStatistics,
    Observer,
    PruningError,
    from_tensors,
    observe,
    select_layers,
    to_tensors,
)

CONV1D = [
    dict(kernel_size=3),
    dict(kernel_size=4, stride=2, padding=1),
    dict(kernel_size=3, dilation=2, padding=2, groups=2),
    dict(kernel_size=5, stride=3, dilation=2, padding=4, groups=4),
    dict(kernel_size=4, padding="same"),
    dict(kernel_size=3, padding="valid", bias=False),
    dict(kernel_size=3, padding=2, padding_mode="reflect"),
    dict(kernel_size=3, padding=1, padding_mode="circular", groups=2),
]
CONV2D = [
    dict(kernel_size=3, padding=1),
    dict(kernel_size=(3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2),
    dict(kernel_size=1, stride=2),
    dict(kernel_size=3, padding="same", dilation=2, groups=4),
    dict(kernel_size=3, padding=1, padding_mode="replicate"),
]


def recount(layer: nn.Module, batch: torch.Tensor) -> dict[str, torch.Tensor]:
    """Feeds one-hot kernels through the layer's own geometry: what each weight multiplies.

    Weight (o, i, k...) of the layer multiplies exactly what a layer of the same geometry outputs
    when that weight alone is one and every other weight and the bias are zero.
    """
    weight = layer.weight.detach()
    groups = getattr(layer, "groups", 1)
    outputs = weight.shape[0] // groups
    sums = {name: torch.zeros(groups, weight[0].numel()).double() for name in ("x", "abs", "sq")}
    probe = type(layer)(**geometry(layer)).double()
    nn.init.zeros_(probe.weight)
    count = None
    for group in range(groups):
        for column, index in enumerate(itertools.product(*(range(n) for n in weight[0].shape))):
            with torch.no_grad():
                probe.weight.zero_()
                probe.weight[(group * outputs, *index)] = 1
                response = probe(batch.double())
            channel = (
                response[..., group * outputs]
                if isinstance(layer, nn.Linear)
                else (response[:, group * outputs])
            )
            sums["x"][group, column] = channel.sum()
            sums["abs"][group, column] = channel.abs().sum()
            sums["sq"][group, column] = (channel * channel).sum()
            count = channel.numel()
    return {**sums, "count": count}


def geometry(layer: nn.Module) -> dict[str, object]:
    if isinstance(layer, nn.Linear):
        return dict(in_features=layer.in_features, out_features=layer.out_features, bias=False)
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")
    names += ("groups", "padding_mode")
    return {**{name: getattr(layer, name) for name in names}, "bias": False}


def assert_equal(found: InputStatistics, expected: dict[str, torch.Tensor]) -> None:
    assert found.count == expected["count"]
    for tensor, name in ((found.total, "x"), (found.absolute, "abs"), (found.square, "sq")):
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-4)


def statistics_of(layer: nn.Module, batches: list[torch.Tensor]) -> InputStatistics:
    model = nn.Sequential(layer)
    layers = select_layers(model).layers
    return observe(model, batches, layers)["0"]


@pytest.mark.parametrize("options", CONV1D)
def test_conv1d_statistics_equal_a_recount(options):
    torch.manual_seed(0)
    layer = nn.Conv1d(4, 8, **options)
    batch = torch.randn(3, 4, 17)
    assert_equal(statistics_of(layer, [batch]), recount(layer, batch))


@pytest.mark.parametrize("options", CONV2D)
def test_conv2d_statistics_equal_a_recount(options):
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 8, **options)
    batch = torch.randn(2, 4, 9, 11)
    assert_equal(statistics_of(layer, [batch]), recount(layer, batch))


@pytest.mark.parametrize("shape", [(5, 6), (2, 7, 6), (2, 3, 4, 6)])
def test_linear_statistics_equal_a_recount(shape):
    torch.manual_seed(0)
    layer = nn.Linear(6, 5)
    batch = torch.randn(shape)
    assert_equal(statistics_of(layer, [batch]), recount(layer, batch))


@pytest.mark.parametrize("normed", [weight_norm, older_weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
def test_weight_normed_convolution_statistics_equal_a_recount(normed):
    """Wav2Vec2's positional convolution: even kernel, grouped, padded, normed over dimension 2."""
    torch.manual_seed(0)
    layer = normed(nn.Conv1d(8, 8, kernel_size=6, padding=3, groups=4), name="weight", dim=2)
    batch = torch.randn(2, 8, 13)
    assert_equal(statistics_of(layer, [batch]), recount_normed(layer, batch))


def recount_normed(layer: nn.Module, batch: torch.Tensor) -> dict[str, torch.Tensor]:
    plain = nn.Conv1d(**geometry(layer))
    return recount(plain, batch)


def test_statistics_columns_are_in_the_order_of_the_weight():
    """Σ_j w_j·Σx_j is the sum of the layer's outputs: holds only if columns and weights agree."""
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False)
    model = nn.Sequential(conv)
    layer = select_layers(model).layers[0]
    batch = torch.randn(2, 4, 8, 8)
    total = observe(model, [batch], [layer])["0"].total
    predicted = (layer.weight().double() * total.unsqueeze(1)).sum(-1).reshape(-1)
    outputs = conv(batch).sum((0, 2, 3)).double()
    torch.testing.assert_close(predicted, outputs, rtol=1e-4, atol=1e-4)


def test_many_batches_equal_one():
    torch.manual_seed(0)
    layer = nn.Conv1d(3, 4, 3, stride=2, padding=1)
    batches = [torch.randn(2, 3, 20) for _ in range(5)]
    streamed = statistics_of(layer, batches)
    at_once = statistics_of(layer, [torch.cat(batches)])
    assert streamed.count == at_once.count
    torch.testing.assert_close(streamed.square, at_once.square, rtol=1e-6, atol=0)


def test_merged_statistics_equal_one_stream():
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    first, second = torch.randn(7, 4), torch.randn(5, 4)
    merged = statistics_of(layer, [first]).merged(statistics_of(layer, [second]))
    whole = statistics_of(layer, [torch.cat([first, second])])
    assert merged.count == whole.count
    torch.testing.assert_close(merged.absolute, whole.absolute)


def test_batch_padding_never_counts_but_the_convolutions_own_padding_does():
    torch.manual_seed(0)
    conv = nn.Conv1d(4, 4, kernel_size=4, padding=2, stride=1)
    linear = nn.Linear(4, 4)
    model = nn.ModuleDict({"conv": conv, "linear": linear})
    layers = select_layers(model).layers
    short, long = torch.randn(1, 4, 9), torch.randn(1, 4, 14)
    padded = torch.cat([nn.functional.pad(short, (0, 5), value=0.0), long])
    junk = padded.clone()
    junk[0, :, 9:] = 1e3  # frames behind the end must not count for the linear layer

    together, alone = Observer(layers), Observer(layers)
    lengths = {"conv": [10, 15], "linear": [9, 14]}
    with torch.inference_mode():
        with together.counting(lengths.__getitem__):
            conv(padded)
            linear(junk.transpose(1, 2))
        with alone.counting():
            for item in (short, long):
                conv(item)
                linear(item.transpose(1, 2))
    for name in ("conv", "linear"):
        found, expected = together.statistics()[name], alone.statistics()[name]
        assert found.count == expected.count
        torch.testing.assert_close(found.absolute, expected.absolute)
        torch.testing.assert_close(found.square, expected.square)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_accumulate_in_float32_or_better(dtype):
    """4096 squares of 16 overflow float16, and adding 1 to 4096 does nothing in bfloat16."""
    layer = nn.Linear(2, 2).to(dtype)
    found = statistics_of(layer, [torch.full((4096, 2), 16.0, dtype=dtype)] * 3)
    assert found.square.tolist() == [[4096 * 256.0 * 3] * 2]
    assert found.absolute.tolist() == [[4096 * 16.0 * 3] * 2]


def test_memory_is_independent_of_the_amount_of_data():
    layer = nn.Conv1d(4, 4, 3)
    sizes = set()
    for batches in (1, 20):
        found = statistics_of(layer, [torch.randn(1, 4, 50)] * batches)
        tensors = (found.total, found.absolute, found.square)
        sizes.add(sum(tensor.numel() for tensor in tensors))
    assert sizes == {3 * 4 * 3}


def test_hooks_and_training_flags_are_put_back_after_an_error():
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout())
    model.train()
    model[1].eval()
    with pytest.raises(RuntimeError):
        observe(model, [torch.randn(2, 4)], select_layers(model).layers)
    assert not model[0]._forward_pre_hooks
    assert (model.training, model[0].training, model[1].training) == (True, True, False)


def test_counting_works_in_inference_mode_and_out_of_it():
    model = nn.Sequential(nn.Linear(3, 3))
    observer = Observer(select_layers(model).layers)
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        with mode(), observer.counting():
            model(torch.ones(2, 3))
    assert observer.statistics()["0"].absolute.tolist() == [[6.0] * 3]


def test_nothing_needs_a_gradient():
    model = nn.Sequential(nn.Linear(3, 3))
    seen = []
    model.register_forward_hook(lambda *_: seen.append(torch.is_inference_mode_enabled()))
    observe(model, [torch.randn(2, 3)], select_layers(model).layers)
    assert seen == [True]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_resumed_counting_equals_uninterrupted_counting():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.Conv1d(4, 2, 2))
    layers = select_layers(model).layers
    batches = [torch.randn(1, 3, 30) for _ in range(6)]
    whole = observe(model, batches, layers)
    first = observe(model, batches[:2], layers)
    observer = Observer(layers)
    observer.resume(first)
    with torch.inference_mode(), observer.counting():
        for batch in batches[2:]:
            model(batch)
    for name, expected in whole.items():
        found = observer.statistics()[name]
        assert found.count == expected.count
        assert torch.equal(found.square, expected.square)


def test_resume_refuses_statistics_of_another_model():
    small, large = nn.Sequential(nn.Linear(3, 3)), nn.Sequential(nn.Linear(4, 3))
    saved = observe(small, [torch.randn(2, 3)], select_layers(small).layers)
    with pytest.raises(PruningError, match=r"shape \(1, 3\), the layer needs \(1, 4\)"):
        Observer(select_layers(large).layers).resume(saved)


def test_nan_input_is_an_error_that_names_the_layer():
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(PruningError, match="the input of 0 was NaN or infinite"):
        observe(model, [torch.tensor([[1.0, float("nan")]])], select_layers(model).layers)


def test_no_batch_is_an_error():
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(PruningError, match="no batch to observe"):
        observe(model, [], select_layers(model).layers)


@pytest.mark.parametrize("batch", [{"input": torch.ones(1, 2)}, (torch.ones(1, 2),)])
def test_batches_may_be_mappings_and_tuples(batch):
    model = nn.Linear(2, 2)
    layers = select_layers(nn.Sequential(model)).layers
    assert observe(model, [batch], layers)["0"].absolute.tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("unfolded", [1, 1 << 23])
@pytest.mark.parametrize("options", [CONV1D[3], CONV1D[6], CONV2D[1]])
def test_products_of_a_convolution_equal_its_unfolded_inputs(options, unfolded, monkeypatch):
    """Against a convolution whose kernels are one-hot: its outputs are the inputs of a weight."""
    monkeypatch.setattr("fpspeech.pruning.statistics.UNFOLDED_VALUES", unfolded)
    torch.manual_seed(0)
    one = isinstance(options["kernel_size"], int)
    layer = (nn.Conv1d if one else nn.Conv2d)(4, 8, **options)
    batch = torch.randn((3, 4, 17) if one else (2, 4, 7, 8))
    model = nn.Sequential(layer)
    observer = Observer(select_layers(model).layers, products={"0"})
    with torch.no_grad(), observer.counting():
        model(batch)
    groups, inputs = layer.groups, layer.weight[0].numel()
    wide = type(layer)(4, groups * inputs, **options, bias=False)
    with torch.no_grad():
        one_hot = torch.eye(inputs).repeat(groups, 1).reshape(wide.weight.shape)
        wide.weight.copy_(one_hot)
        unfolded_inputs = wide(batch).transpose(0, 1).reshape(groups, inputs, -1)
    found = observer.statistics()["0"]
    for group in range(groups):
        expected = sum(torch.outer(x, x) for x in unfolded_inputs[group].T)
        torch.testing.assert_close(found.products[group], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        found.products.diagonal(dim1=1, dim2=2).double(), found.square, rtol=1e-4, atol=1e-4
    )


def test_products_of_every_third_position():
    """Some start among the first three, then every third; each item of the batch its own start."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(3, 4, 2))
    batch = torch.randn(1, 3, 12)
    layers = select_layers(model).layers
    found = observe(model, [batch], layers, products={"0"}, product_stride=3)["0"]
    possible = [
        sum(
            torch.outer(batch[0, :, t : t + 2].reshape(-1), batch[0, :, t : t + 2].reshape(-1))
            for t in range(start, 11, 3)
        )
        for start in range(3)
    ]
    assert any(torch.allclose(found.products[0], each, atol=1e-5) for each in possible)
    assert found.product_count in (3, 4)
    torch.testing.assert_close(found.moments[0], found.products[0] / found.product_count)


def test_a_stride_sees_every_column_of_a_picture():
    """Maps of 8 x 8 and a stride of 4: a fixed start would see two columns of eight alone."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1))
    column = torch.arange(8.0).expand(1, 1, 8, 8)
    pictures = [torch.nn.functional.one_hot(column.long(), 8)[..., c].float() for c in range(8)]
    layers = select_layers(model).layers
    for picture in pictures:  # one in its own column, zero elsewhere
        found = observe(model, [picture] * 40, layers, products={"0"}, product_stride=4)["0"]
        share = found.moments.item()
        assert 0.03 < share < 0.3, "about one position in eight"


def test_a_stride_over_single_positions_counts_some_of_them():
    model = nn.Sequential(nn.Linear(2, 2))
    layers = select_layers(model).layers
    batches = [torch.ones(1, 2)] * 400
    found = observe(model, batches, layers, products={"0"}, product_stride=4)["0"]
    assert 60 < found.product_count < 140


def test_products_of_a_linear_layer_leave_batch_padding_out():
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    batch = torch.randn(2, 5, 3)
    observer = Observer(select_layers(nn.Sequential(layer)).layers, products={"0"})
    with torch.no_grad(), observer.counting(lambda name: [5, 2]):
        layer(batch)
    expected = sum(torch.outer(x, x) for x in [*batch[0], *batch[1, :2]])
    torch.testing.assert_close(observer.statistics()["0"].products, expected.unsqueeze(0))


def test_heavy_tailed_inputs_tell_mean_and_root_mean_square_apart():
    rare = torch.zeros(100, 2)
    rare[0, 0] = 10.0
    rare[:, 1] = 0.2
    found = statistics_of(nn.Linear(2, 1), [rare])
    assert found.mean_absolute[0, 0] < found.mean_absolute[0, 1]
    assert found.root_mean_square[0, 0] > found.root_mean_square[0, 1]


def test_the_sum_over_the_positions_of_the_products_goes_with_them():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(3, 4, 2, groups=1), nn.Flatten(), nn.Linear(44, 2))
    layers = select_layers(model).layers
    batches = [torch.randn(2, 3, 12) + 1 for _ in range(3)]
    every = observe(model, batches, layers, products={"0", "2"})
    for found in every.values():
        torch.testing.assert_close(found.product_mean, found.mean, rtol=1e-5, atol=1e-5)
    # With x₀ replaced by a constant one, a row of Σxxᵀ is the sum: of the same positions.
    ones = [torch.cat([torch.ones(2, 1, 12), batch[:, 1:]], 1) for batch in batches]
    some = observe(model, ones, layers, products={"0"}, product_stride=3)["0"]
    assert some.product_count < some.count
    expected = (some.products[0, 0] / some.product_count).double()
    torch.testing.assert_close(some.product_mean[0], expected, rtol=1e-5, atol=1e-5)


def test_tensors_and_back_are_the_same_bits_and_counting_goes_on_from_them():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(4, 4, 2, groups=2), nn.Flatten(), nn.Linear(44, 2))
    layers = select_layers(model).layers
    batches = [torch.randn(2, 4, 12) for _ in range(4)]

    def counted(observer: Observer, some: list[torch.Tensor]) -> dict[str, InputStatistics]:
        with torch.inference_mode(), observer.counting():
            for batch in some:
                model(batch)
        return observer.statistics()

    whole = counted(Observer(layers, {"0"}, 3), batches)
    half = to_tensors(counted(Observer(layers, {"0"}, 3), batches[:2]))
    assert set(half) == {
        *("0:counts", "0:sums", "0:products", "0:product_total", "2:counts", "2:sums")
    }
    observer = Observer(layers, {"0"}, 3)
    observer.resume(from_tensors(half))
    for one, other in ((whole, counted(observer, batches[2:])), (whole, whole)):
        back = from_tensors(to_tensors(other))
        assert one.keys() == back.keys()
        for name, found in one.items():
            assert (found.count, found.product_count) == (
                back[name].count,
                back[name].product_count,
            )
            for part in ("total", "absolute", "square", "products", "product_total"):
                expected, value = getattr(found, part), getattr(back[name], part)
                assert expected is value is None or torch.equal(expected, value), part


def test_tensors_that_are_no_statistics_are_refused():
    good = to_tensors({"a": InputStatistics(3, *(torch.ones(1, 2) for _ in range(3)))})
    with pytest.raises(PruningError, match="'a' lack their counts or sums"):
        from_tensors({"a:sums": good["a:sums"]})
    with pytest.raises(PruningError, match="'a' do not fit together"):
        from_tensors({**good, "a:products": torch.ones(1, 3, 3)})
