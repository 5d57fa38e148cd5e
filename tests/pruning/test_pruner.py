"""Selection, the loop from data to masks, and apply and restore."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import weight_norm as older_weight_norm
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from fpspeech.pruning import (
    PruningConfig,
    PruningError,
    apply_masks,
    make_masks,
    observe,
    products_for,
    prune,
    prune_layers,
    select,
    select_layers,
    sparsity_of,
)
from fpspeech.pruning.layer_update import update_layer

NORMED = [weight_norm, older_weight_norm]
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")


class Mixed(nn.Module):
    """One layer of every kind, in a model that belongs to nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Conv2d(1, 4, 3, padding=1)
        self.grouped = nn.Conv1d(4, 8, 4, stride=2, padding=1, groups=2)
        self.normed = weight_norm(nn.Conv1d(8, 8, 4, padding=2, groups=4), dim=2)
        self.older = older_weight_norm(nn.Conv1d(8, 8, 3, padding=1), dim=0)
        self.head = nn.Linear(8, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.front(images).mean(2)  # (B, 4, T)
        hidden = torch.tanh(self.grouped(hidden))
        hidden = self.older(torch.relu(self.normed(hidden)))
        return self.head(hidden.mean(-1))


@pytest.fixture
def model() -> Mixed:
    torch.manual_seed(0)
    return Mixed().eval()


@pytest.fixture
def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 1, 6, 12, generator=generator) for _ in range(3)]


@pytest.mark.parametrize("score", ["fine_pruning", "wanda", "ria", "magnitude", "random"])
@pytest.mark.parametrize("group", ["row", "layer", "global"])
def test_any_module_is_pruned_exactly_and_restored_bit_for_bit(model, batches, score, group):
    config = PruningConfig(sparsity=0.5, score=score, group=group)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    dense = model(batches[0])
    layers = select_layers(model).layers
    masks = make_masks(layers, observe(model, batches, layers), config)
    with apply_masks(layers, masks):
        for layer in layers:
            # zero where pruned, and nowhere else
            assert torch.equal(layer.weight() != 0, masks[layer.name]), layer.name
        assert torch.isfinite(model(batches[0])).all()
        assert not torch.equal(model(batches[0]), dense)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(model(batches[0]), dense)
    if group == "row":
        for layer in layers:
            inputs = layer.shape[2]
            pruned = (~masks[layer.name]).sum(-1)
            assert bool((pruned == int(inputs * 0.5)).all()), layer.name
    else:
        assert sparsity_of(masks) == pytest.approx(0.5, abs=0.01)


def test_the_whole_way_for_any_module(model, batches):
    dense = model(batches[0])
    pruned = prune(model, batches, PruningConfig(sparsity=0.6), exclude={"head": "output layer"})
    assert torch.equal(model(batches[0]), dense)
    assert pruned.masks.keys() == pruned.kept.keys() == {"front", "grouped", "normed", "older"}
    with pruned.apply():
        updated = model(batches[0])
        for layer in pruned.selection.layers:
            assert not layer.weight()[~pruned.masks[layer.name]].any()
    assert torch.equal(model(batches[0]), dense)
    with apply_masks(pruned.selection.layers, pruned.masks):
        alone = model(batches[0])
    assert (updated - dense).norm() < (alone - dense).norm()


def test_an_update_without_products_is_an_error_that_says_how_to_get_them(model, batches):
    layers = select_layers(model).layers
    statistics = observe(model, batches, layers)
    with pytest.raises(PruningError, match=r"front hold no products.*products_for"):
        prune_layers(layers, statistics, PruningConfig(score="wanda"))
    assert prune_layers(layers, statistics, PruningConfig(score="wanda", update="none")).kept == {}


def test_same_input_and_seed_give_the_same_bits(model, batches):
    layers = select_layers(model).layers
    for score in ("fine_pruning", "random"):
        config = PruningConfig(sparsity=0.7, score=score, seed=5)
        runs = [make_masks(layers, observe(model, batches, layers), config) for _ in range(2)]
        assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_random_masks_do_not_depend_on_which_other_layers_are_pruned(model):
    layers = select_layers(model).layers
    config = PruningConfig(sparsity=0.5, score="random")
    alone = make_masks(layers[-1:], {}, config)
    together = make_masks(layers, {}, config)
    assert torch.equal(alone["head"], together["head"])


@pytest.mark.parametrize("normed", NORMED)
def test_kept_weights_of_a_normed_layer_keep_their_values(normed):
    torch.manual_seed(0)
    conv = normed(nn.Conv1d(8, 8, 4, groups=4), name="weight", dim=2)
    layer = select_layers(nn.Sequential(conv)).layers[0]
    dense = layer.weight().clone()
    mask = torch.rand(layer.shape) > 0.5
    with apply_masks([layer], {"0": mask}):
        torch.testing.assert_close(layer.weight()[mask], dense[mask], rtol=1e-6, atol=1e-7)
        assert not layer.weight()[~mask].any()
    assert torch.equal(layer.weight(), dense)


@pytest.mark.parametrize("normed", NORMED)
def test_a_normed_slice_that_is_pruned_whole_becomes_zero_not_nan(normed):
    torch.manual_seed(0)
    conv = normed(nn.Conv1d(4, 4, 3, padding=1), name="weight", dim=2)
    layer = select_layers(nn.Sequential(conv)).layers[0]
    mask = torch.ones(4, 4, 3, dtype=torch.bool)
    mask[:, :, 1] = False  # the kernel slice [:, :, 1], over which the norm is taken
    with apply_masks([layer], {"0": mask.reshape(layer.shape)}):
        weight = layer.weight().reshape(4, 4, 3)
        assert not weight[:, :, 1].any()
        assert torch.isfinite(weight).all()
        assert torch.isfinite(conv(torch.randn(1, 4, 9))).all()


def test_a_pruned_model_survives_its_state_dict(model, batches):
    """What a merged folder holds: a fresh model with this state dict computes the same."""
    layers = select_layers(model).layers
    masks = make_masks(layers, {}, PruningConfig(sparsity=0.7, score="magnitude"))
    fresh = Mixed().eval()
    with apply_masks(layers, masks):
        fresh.load_state_dict(copy.deepcopy(model.state_dict()))
        assert torch.equal(fresh(batches[0]), model(batches[0]))


def test_pruned_output_equals_a_model_with_weights_zeroed_by_hand(batches):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(160, 3))
    layers = select_layers(model).layers
    masks = make_masks(layers, observe(model, batches, layers), PruningConfig(sparsity=0.6))
    by_hand = copy.deepcopy(model)
    with torch.no_grad():
        by_hand[0].weight.copy_(by_hand[0].weight * masks["0"].reshape(4, 1, 3, 3))
        by_hand[2].weight.copy_(by_hand[2].weight * masks["2"].reshape(3, 160))
    with apply_masks(layers, masks):
        assert torch.equal(model(batches[0]), by_hand(batches[0]))


def test_exclusions_and_their_reasons_are_listed():
    model = nn.ModuleDict(
        {
            "embed": nn.Embedding(7, 4),
            "body": nn.Linear(4, 4),
            "tied": nn.Linear(4, 7, bias=False),
            "spectral": spectral_norm(nn.Linear(4, 4)),
            "up": nn.ConvTranspose1d(4, 4, 2),
            "attention": nn.MultiheadAttention(4, 2),
            "norm": nn.LayerNorm(4),
            "head": nn.Linear(4, 2),
        }
    )
    model["tied"].weight = model["embed"].weight
    selection = select_layers(model, {"head": "output layer"})
    reasons = {exclusion.name: exclusion.reason for exclusion in selection.excluded}
    assert [layer.name for layer in selection.layers] == ["body"]
    assert reasons["head"] == "output layer"
    assert reasons["tied"] == "its weight is tied to embed"
    assert "Embedding is not" in reasons["embed"]
    assert "_SpectralNorm" in reasons["spectral"]
    assert "ConvTranspose1d is not" in reasons["up"]
    assert "without calling the layer" in reasons["attention.out_proj"]
    assert "norm" not in reasons


def test_an_exclusion_that_names_nothing_is_an_error(model):
    with pytest.raises(PruningError, match=r"no module is named \['haed'\]"):
        select_layers(model, {"haed": "typo"})


def test_nothing_to_prune_is_an_error():
    with pytest.raises(PruningError, match="nothing to prune in LayerNorm"):
        select_layers(nn.LayerNorm(3))


def test_a_layer_that_saw_no_input_is_an_error_that_names_it(model, batches):
    layers = select_layers(model).layers
    statistics = observe(model, batches, layers)
    del statistics["grouped"]
    with pytest.raises(PruningError, match="grouped saw no input"):
        make_masks(layers, statistics, PruningConfig())


def test_n_of_m_excludes_layers_that_do_not_fit_and_says_so(model, batches):
    config = PruningConfig(sparsity=0.5, group="2:4")
    selection = select(model, config, {})
    assert {layer.name for layer in selection.layers} == {"grouped", "normed", "older", "head"}
    assert [(e.name, e.reason) for e in selection.excluded] == [
        ("front", "its 9 inputs do not divide by 4")
    ]
    masks = make_masks(selection.layers, observe(model, batches, selection.layers), config)
    for mask in masks.values():
        assert bool((mask.reshape(*mask.shape[:2], -1, 4).sum(-1) == 2).all())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(sparsity=1.0), "expected 0 <= sparsity < 1"),
        (dict(sparsity=70), "did you mean 0.7"),
        (dict(score="wnda"), "no score is named 'wnda'"),
        (dict(group="rows"), "no comparison group is named 'rows'"),
        (dict(group="2:4", sparsity=0.7), "make them agree"),
        (dict(group="4:2"), "0 < N <= M"),
        (dict(cap=0.0), "0 < cap"),
        (dict(update="alp"), "no update is named 'alp'"),
        (dict(shrinkage="some"), "'none', 'auto' or a weight from 0 to 1, found 'some'"),
        (dict(shrinkage=1.5), "a weight from 0 to 1, found 1.5"),
    ],
)
def test_bad_settings_are_refused_with_a_remedy(settings, message):
    with pytest.raises(PruningError, match=message):
        PruningConfig(**settings)


def test_single_layers_may_have_a_sparsity_of_their_own(model):
    layers = select_layers(model).layers
    config = PruningConfig(score="magnitude", group="layer", overrides=(("*", 0.5), ("head", 0.0)))
    masks = make_masks(layers, {}, config)
    assert bool(masks["head"].all())
    assert int((~masks["grouped"]).sum()) == masks["grouped"].numel() // 2
    with pytest.raises(PruningError, match="no pruned layer is named 'haed'"):
        make_masks(layers, {}, PruningConfig(overrides=(("haed", 0.5),)))
    with pytest.raises(PruningError, match="decides itself"):
        PruningConfig(group="global", overrides=(("head", 0.5),))


def test_a_mask_of_another_model_is_refused(model):
    layers = select_layers(model).layers
    with pytest.raises(PruningError, match="no such layer"):
        apply_masks(layers, {"other": torch.ones(1, 1, 1, dtype=torch.bool)})
    with pytest.raises(PruningError, match="belong to different models"):
        apply_masks(layers, {"head": torch.ones(1, 5, 9, dtype=torch.bool)})


def test_a_second_mask_on_top_is_refused_until_the_first_is_restored(model):
    layers = select_layers(model).layers
    masks = make_masks(layers, {}, PruningConfig(score="magnitude"))
    with apply_masks(layers, masks), pytest.raises(PruningError, match="restore it first"):
        apply_masks(layers, masks)
    apply_masks(layers, masks).restore()


def test_values_of_an_update_are_in_force_with_the_masks_and_restored(model):
    layers = select_layers(model).layers
    before = model.head.bias.detach().clone()
    values = {"head.bias": torch.arange(5.0)}
    with apply_masks(layers, {}, network=model, values=values):
        assert torch.equal(model.head.bias, torch.arange(5.0))
    assert torch.equal(model.head.bias, before)
    with pytest.raises(PruningError, match="which the model does not have"):
        apply_masks(layers, {}, network=model, values={"tail.bias": before})
    with pytest.raises(PruningError, match=r"shape \(4,\), the model's \(5,\)"):
        apply_masks(layers, {}, network=model, values={"head.bias": before[:4]})


def test_restore_twice_is_harmless_and_infinite_weights_prune_to_zero():
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[float("inf"), -1.0]]))
    layers = select_layers(model).layers
    applied = apply_masks(layers, {"0": torch.tensor([[[False, False]]])})
    assert model[0].weight.tolist() == [[0.0, 0.0]]
    assert not torch.signbit(model[0].weight).any()
    applied.restore()
    applied.restore()
    assert model[0].weight.tolist() == [[float("inf"), -1.0]]


def seen_by(model, batches, layers, config=None):
    products = products_for(layers, config or PruningConfig())
    return observe(model, batches, layers, products=products)


@pytest.mark.parametrize("update", ["none", "least_squares", "sparsegpt", "alps"])
@pytest.mark.parametrize("group", ["row", "layer", "global", "1:4"])
@pytest.mark.parametrize("bias", [False, True])
def test_every_update_prunes_exactly_and_is_restored_bit_for_bit(
    model, batches, update, group, bias
):
    sparsity = 0.75 if group == "1:4" else 0.5
    config = PruningConfig(sparsity, group=group, update=update, bias=bias, product_stride=1)
    layers = select(model, config, {}).layers
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    statistics = seen_by(model, batches, layers, config)
    pruned = prune_layers(layers, statistics, config)
    scored = make_masks(layers, statistics, config)
    assert pruned.masks.keys() == {layer.name for layer in layers}
    assert pruned.kept.keys() == (set() if update == "none" else pruned.masks.keys())
    assert pruned.values.keys() == ({f"{name}.bias" for name in pruned.masks} if bias else set())
    for name, mask in pruned.masks.items():
        if group in ("row", "1:4"):
            assert torch.equal(mask.sum(-1), scored[name].sum(-1)), name
        assert mask.sum() == scored[name].sum(), name
        assert update in ("sparsegpt", "alps") or torch.equal(mask, scored[name])
    again = prune_layers(layers, statistics, config)
    assert all(torch.equal(pruned.kept[name], again.kept[name]) for name in pruned.kept)
    values = dict(network=model, values=pruned.values, kept=pruned.kept)
    with apply_masks(layers, pruned.masks, **values):
        for layer in layers:
            assert not layer.weight()[~pruned.masks[layer.name]].any()
        assert torch.isfinite(model(batches[0])).all()
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("update", ["sparsegpt", "alps"])
def test_joint_updates_keep_to_the_sparsity_of_single_layers(model, batches, update):
    overrides = (("*", 0.5), ("head", 0.0), ("grouped", 0.75))
    config = PruningConfig(update=update, overrides=overrides)
    layers = select_layers(model).layers
    pruned = prune_layers(layers, seen_by(model, batches, layers), config)
    assert bool(pruned.masks["head"].all())
    assert bool(((~pruned.masks["grouped"]).sum(-1) == 6).all())
    assert bool(((~pruned.masks["front"]).sum(-1) == 4).all())
    torch.testing.assert_close(
        pruned.kept["head"].float(), model.head.weight.detach().reshape(-1), rtol=1e-3, atol=1e-3
    )
    with pytest.raises(PruningError, match="no pruned layer is named 'haed'"):
        prune_layers(layers, {}, PruningConfig(update=update, overrides=(("haed", 0.5),)))


def test_the_whole_way_with_biases(model, batches):
    dense = model(batches[0])
    pruned = prune(model, batches, PruningConfig(0.6, update="alps", bias=True))
    assert pruned.values.keys() == {f"{name}.bias" for name in pruned.masks}
    with pruned.apply():
        torch.testing.assert_close(model.head.bias.detach(), pruned.values["head.bias"])
        assert not torch.equal(model(batches[0]), dense)
    assert torch.equal(model(batches[0]), dense)


def test_prune_layers_is_masks_and_least_squares_by_default(model, batches):
    layers = select_layers(model).layers
    statistics = seen_by(model, batches, layers)
    pruned = prune_layers(layers, statistics, PruningConfig())
    masks = make_masks(layers, statistics, PruningConfig())
    assert pruned.values == {}
    for layer in layers:
        name = layer.name
        found = update_layer(layer, masks[name], statistics[name], PruningConfig())
        assert torch.equal(pruned.masks[name], masks[name])
        assert torch.equal(pruned.kept[name], found.kept)


def test_other_peoples_statistics_count_where_they_are_asked_for(model, batches):
    layers = select_layers(model).layers
    own = seen_by(model, batches, layers)
    others = seen_by(model, [batch.flip(-1) * 2 + 1 for batch in batches], layers)
    plain = prune_layers(layers, own, PruningConfig())
    for config in (
        PruningConfig(shrinkage=1.0),
        PruningConfig(shrinkage="auto"),
        PruningConfig(score="contrast"),
    ):
        assert config.needs_generic
        with pytest.raises(PruningError, match="of other people for front, found none: observe"):
            prune_layers(layers, own, config)
        found = prune_layers(layers, own, config, others)
        assert any(not torch.equal(found.masks[name], plain.masks[name]) for name in plain.masks)
    whole = prune_layers(layers, own, PruningConfig(shrinkage=1.0), others)
    theirs = prune_layers(layers, others, PruningConfig())
    none = prune_layers(layers, own, PruningConfig(shrinkage=0.0), others)
    for name in plain.masks:
        # But for rounding: their sums are brought to the user's counts.
        assert (whole.masks[name] == theirs.masks[name]).float().mean() > 0.95
        assert torch.equal(none.kept[name], plain.kept[name])
    same = prune_layers(layers, own, PruningConfig(score="contrast"), own)
    fine = prune_layers(layers, own, PruningConfig(score="fine_pruning"))
    assert all(torch.equal(same.masks[name], fine.masks[name]) for name in same.masks)
