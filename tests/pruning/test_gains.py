"""Gains and shifts of a network's tensors, number by number."""

import pytest
import torch
from torch import nn

from fpspeech.pruning import PruningError, apply_masks
from fpspeech.pruning.gains import Gain, Gains


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(2, 3, 4, bias=False), nn.GELU(), nn.LayerNorm(5))


TUNED = (Gain("0.weight", rows=True), Gain("2.bias"), Gain("2.weight"))


def test_every_number_of_a_point_goes_where_it_belongs(network):
    with torch.no_grad():
        network[2].bias.copy_(torch.tensor([1.0, -3.0, 0.0, 2.0, -4.0]))
    gains = Gains(network, TUNED)
    assert gains.dimensions == 3 + 5 + 5
    point = torch.arange(13.0) / 10
    found = gains.values(point)
    assert list(found) == ["0.weight", "2.bias", "2.weight"]
    for row in range(3):
        for channel in range(2):
            for tap in range(4):
                dense = network[0].weight[row, channel, tap].item()
                assert found["0.weight"][row, channel, tap].item() == pytest.approx(
                    dense * (1 + row / 10)
                )
    for element in range(5):
        dense = network[2].bias[element].item()
        assert found["2.bias"][element].item() == pytest.approx(dense + (3 + element) / 10 * 2.0)
        assert found["2.weight"][element].item() == pytest.approx(1 + (8 + element) / 10)


def test_the_origin_is_the_network_even_when_it_has_changed_since(network):
    nn.init.normal_(network[2].bias)
    dense = {name: each.clone() for name, each in network.state_dict().items()}
    gains = Gains(network, TUNED)
    with apply_masks([], {}, network=network, values=gains.values(torch.ones(13))):
        for name, value in gains.values(torch.zeros(13)).items():
            assert torch.equal(value, dense[name])
            assert not torch.equal(network.state_dict()[name], dense[name])


def test_a_tensor_that_is_not_there_is_named(network):
    with pytest.raises(PruningError, match=r"9\.weight"):
        Gains(network, (Gain("9.weight"),))


def test_a_vector_of_zeros_has_no_unit_and_stays(network):
    nn.init.zeros_(network[2].bias)
    found = Gains(network, (Gain("2.bias"),)).values(torch.ones(5))
    assert found["2.bias"].tolist() == [0.0] * 5


class Front(nn.Module):
    """Every kind of module that recordings can have a point of their own in."""

    def __init__(self, bias):
        super().__init__()
        self.first = nn.Conv1d(1, 6, 5, stride=2, bias=bias)
        self.groups = nn.GroupNorm(3, 6)
        self.second = nn.Conv1d(6, 4, 3, bias=bias)
        self.norm = nn.LayerNorm(4)
        self.projection = nn.Linear(4, 5)
        for parameter in self.parameters():
            nn.init.normal_(parameter)

    def forward(self, signals):
        hidden = self.groups(self.first(signals[:, None])).relu()
        hidden = self.norm(self.second(hidden).transpose(1, 2))
        return self.projection(hidden)


@pytest.mark.parametrize("bias", [True, False])
def test_each_recording_at_its_own_point_is_the_network_tuned_to_each_alone(bias):
    torch.manual_seed(1)
    network = Front(bias)
    names = ["first.weight", "groups.weight", "groups.bias", "second.weight"]
    names += ["norm.weight", "norm.bias", "projection.bias"]
    names += ["first.bias", "second.bias"] if bias else []
    rows = ("first.weight", "second.weight")
    gains = Gains(network, [Gain(name, rows=name in rows) for name in names])
    points = torch.randn(3, gains.dimensions)
    signals = torch.randn(3, 40)
    dense = network(signals)
    with gains.of_each(points):
        together = network(signals)
    assert not torch.allclose(together, dense, atol=1e-2)
    for point, signal, found in zip(points, signals, together, strict=True):
        values = gains.values(point)
        with apply_masks([], {}, network=network, values=values):
            alone = network(signal[None])[0]
        torch.testing.assert_close(found, alone, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(network(signals), dense)


def test_a_batch_of_another_size_than_the_points_is_refused():
    gains = Gains(Front(bias=True), [Gain("norm.bias")])
    with (
        gains.of_each(torch.zeros(2, 4)),
        pytest.raises(PruningError, match="norm runs 3 recordings, but there are points of 2"),
    ):
        gains.network(torch.randn(3, 40))


@pytest.mark.parametrize(
    ("gain", "complaint"),
    [
        (Gain("projection.weight", rows=True), "projection: expected a convolution, .* Linear"),
        (Gain("second.weight"), "second.weight has 3 dimensions: expected a vector"),
    ],
)
def test_what_recordings_cannot_have_of_their_own_is_refused(gain, complaint):
    gains = Gains(Front(bias=True), [gain])
    points = torch.ones(2, gains.dimensions)
    with pytest.raises(PruningError, match=complaint), gains.of_each(points):
        pass
