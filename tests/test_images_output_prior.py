"""The output prior of a user's photos from end to end, on a tiny ResNet that knows its classes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from commands import run
from tiny_resnet import CLASSES, picture, write_photos, write_tiny_resnet
from torch import nn

from fpspeech import Config, PruningConfig
from fpspeech.cli import main
from fpspeech.corpora.images import decode
from fpspeech.evaluate_images import answer, evaluate_photos, prior_and_pruning
from fpspeech.image_controls import CALIBRATIONS
from fpspeech.image_results import DENSE, DENSE_SYSTEM, OWN, ImageSystem, read_image_result
from fpspeech.image_stages import run_image_recipe
from fpspeech.images import adapt, personalize_photos
from fpspeech.looking import look_at
from fpspeech.models import ImageModel, ModelError, load_image_model, load_speech_model
from fpspeech.personal import Personal, merge
from fpspeech.personalize_speech import personalize, select_layers_of
from fpspeech.pruning import PruningError, estimate_prior, with_prior
from fpspeech.pruning.output_prior import PRUNED_BIAS
from fpspeech.recipe import Recipe, read_recipe
from fpspeech.user_photos import UserPhotos

OUTPUTS = {name: number for number, name in enumerate(CLASSES)}
PLAIN = Config(pruning=PruningConfig(sparsity=0.5, product_stride=1), batch_size=8)
CONFIG = replace(PLAIN, output_prior="em")
LAYER = "classifier.1"


def teach(folder: Path) -> None:
    """Fits the last layer to pictures of each class, so that the answers mean something."""
    model = load_image_model(folder)
    layer = model.network.get_submodule(LAYER)
    seen: list[torch.Tensor] = []
    handle = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for kind in range(len(CLASSES)):
        model.logits([picture(kind, 100 + number) for number in range(20)])
    handle.remove()
    features = torch.cat(seen).double()
    inputs = torch.cat([features, torch.ones(len(features), 1)], 1)
    right = torch.eye(len(CLASSES)).double().repeat_interleave(20, 0)
    gram = inputs.T @ inputs + 1e-4 * torch.eye(inputs.shape[1])
    fitted = 8 * torch.linalg.solve(gram, inputs.T @ right)
    with torch.no_grad():
        layer.weight.copy_(fitted[:-1].T)
        layer.bias.copy_(fitted[-1])
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, photos and a recipe."""
    folder = tmp_path_factory.mktemp("prior")
    write_tiny_resnet(folder / "model")
    teach(folder / "model")
    write_photos(folder / "photos", each=24)
    recipe = {
        "model": str(folder / "model"),
        "photos": {"folder": str(folder / "photos")},
        "users": {"anna": {"classes": ["ant", "bee"]}, "all": {"classes": list(CLASSES)}},
        "forgetting_photos": 12,
        "pruning": {"sparsity": 0.5},
        "batch_size": 8,
        "output_prior": "em",
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@pytest.fixture(scope="module")
def model(place):
    return load_image_model(place / "model")


@pytest.fixture(scope="module")
def photos(place):
    return UserPhotos(Recipe.model_validate(yaml.safe_load((place / "recipe.yaml").read_text())))


@pytest.fixture(scope="module")
def personal(model, photos):
    return personalize_photos(model, photos.adapt("anna"), CONFIG)


def logits_of(model, photos) -> torch.Tensor:
    return torch.cat([model.logits([decode(photo).image]) for photo in photos])


def test_the_model_never_answers_what_the_user_does_not_photograph(model, photos, personal):
    everything = [*photos.test("anna"), *photos.others("anna")]
    assert len(set(logits_of(model, everything).argmax(1).tolist())) > 2
    with personal.apply(model):
        logits = logits_of(model, everything)
    assert set(logits.argmax(1).tolist()) == {0, 1}
    assert (logits[:, 2:] == PRUNED_BIAS).all()
    assert personal.report["output_prior"] == {
        "classes": 6,
        "kept_classes": 2,
        "differs_from_training": True,
    }


def test_pruning_is_what_it_is_without_the_prior(model, photos, personal):
    plain = personalize_photos(model, photos.adapt("anna"), PLAIN)
    assert personal.masks.keys() - plain.masks.keys() == {LAYER}
    assert personal.values.keys() - plain.values.keys() == {f"{LAYER}.bias"}
    assert all(torch.equal(personal.masks[name], mask) for name, mask in plain.masks.items())
    assert all(torch.equal(personal.values[name], value) for name, value in plain.values.items())
    assert plain.report["output_prior"] is None
    for name in ("sparsity", "pruned_weights", "batch_norms_matched", "layers", "excluded"):
        assert personal.report[name] == plain.report[name]


def test_it_is_the_prior_of_the_dense_models_answers_put_on_the_pruned_ones(
    model, photos, personal
):
    prior = estimate_prior(logits_of(model, photos.adapt("anna")).softmax(1))
    test = photos.test("anna")
    with personalize_photos(model, photos.adapt("anna"), PLAIN).apply(model):
        expected = with_prior(logits_of(model, test), prior)
    with personal.apply(model):
        torch.testing.assert_close(logits_of(model, test), expected, atol=1e-4, rtol=1e-4)


def test_restored_bit_for_bit_saved_loaded_and_merged(model, photos, personal, place, tmp_path):
    from transformers import ResNetForImageClassification

    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    test = photos.test("anna")
    personal.save(tmp_path / "anna")
    loaded = Personal.load(tmp_path / "anna")
    with personal.apply(model):
        expected = logits_of(model, test)
    with loaded.apply(model):
        assert torch.equal(logits_of(model, test), expected)
    state = model.network.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
    merge(loaded, model, tmp_path / "merged")
    stock = ResNetForImageClassification.from_pretrained(tmp_path / "merged").eval()
    pixels = model.preprocess([decode(photo).image for photo in test])
    with torch.inference_mode():
        found = stock(pixels).logits
        half = stock.half()(pixels.half()).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (stock.classifier[1].weight[2:] == 0).all()
    assert torch.isfinite(half).all()
    assert (half[:, 2:] == PRUNED_BIAS).all()
    for folder in ("anna", "merged"):
        assert "2 of the base's 6 classes" in (tmp_path / folder / "README.md").read_text()
    assert not any(
        f'"{name}"' in (tmp_path / "anna" / "report.json").read_text() for name in CLASSES
    )


def test_a_user_of_all_classes_or_of_few_photos_keeps_the_models_answers(model, photos):
    for adapt_on in (photos.adapt("all"), photos.adapt("anna")[:2]):
        personal = personalize_photos(model, adapt_on, CONFIG)
        assert LAYER not in personal.masks
        assert f"{LAYER}.bias" not in personal.values
        assert prior_and_pruning(model, personal) is None
        report = personal.report["output_prior"]
        assert report == {"classes": 6, "kept_classes": 6, "differs_from_training": False}


def test_what_the_prior_does_and_what_pruning_does_are_measured_apart(model, photos, personal):
    test, others = photos.test("anna"), photos.others("anna")
    found = evaluate_photos(model, personal, test, ["ant", "bee"], OUTPUTS, others=others)
    plain = personalize_photos(model, photos.adapt("anna"), PLAIN)
    alone = evaluate_photos(model, plain, test, ["ant", "bee"], OUTPUTS, others=others)
    assert alone.prior is None
    parts = found.prior.parts
    assert parts.pruned_all.rate == alone.numbers.pruned_all.rate
    assert parts.pruned_user.rate == alone.numbers.pruned_user.rate
    assert found.prior.other_classes_pruned.rate == alone.forgetting.pruned.rate
    dense = answer(model, test, OUTPUTS)
    prior = estimate_prior(logits_of(model, photos.adapt("anna")).softmax(1))
    right = with_prior(dense.logits, prior).argmax(1) == torch.tensor(dense.labels)
    assert parts.dense_prior_all.rate == pytest.approx(float(right.double().mean()))
    # Only two classes are left to answer with, so both columns are the same.
    assert parts.dense_prior_all.rate == parts.dense_prior_user.rate
    assert found.prior.other_classes_dense_prior.rate == 0
    assert found.forgetting.pruned.rate == 0
    steps = found.prior.parts
    assert steps.prior.all.difference == pytest.approx(
        parts.dense_prior_all.rate - found.numbers.dense_all.rate
    )
    assert steps.pruning.all.difference == pytest.approx(
        parts.pruned_all.rate - found.numbers.dense_all.rate
    )
    assert steps.prior.all.difference + steps.pruning_with_prior.all.difference == pytest.approx(
        found.numbers.change_all.difference
    )


def test_speech_has_no_output_prior(tiny_layer, tmp_path, capsys):
    with pytest.raises(PruningError, match="open vocabulary"):
        personalize(load_speech_model(tiny_layer), [], Config(output_prior="em"))
    with pytest.raises(SystemExit) as end:
        main(["personalize", "--output-prior", "em", "--out", str(tmp_path / "out")])
    assert end.value.code == 2
    assert "open vocabulary" in " ".join(capsys.readouterr().err.replace("│", " ").split())
    with pytest.raises(PruningError, match=r"output prior: expected one of \['none', 'em'\]"):
        Config(output_prior="EM")


def test_models_it_does_not_fit_are_refused(place, photos):
    class Doubled(nn.Module):
        def __init__(self, bias: bool = True, doubled: bool = True):
            super().__init__()
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten())
            self.last = nn.Linear(4 * 28 * 28, 6, bias=bias)
            self.times = 2 if doubled else 1

        def forward(self, x):
            return self.times * self.last(self.body(x))

    resnet = load_image_model(place / "model")
    mine = photos.adapt("anna")

    def personal_of(network: nn.Module) -> Personal:
        with torch.no_grad():  # sure of what it answers
            network.last.weight.mul_(100)
        return personalize_photos(ImageModel(network, resnet.preprocess, CLASSES), mine, CONFIG)

    assert personal_of(Doubled(doubled=False)).report["output_prior"]["differs_from_training"]
    with pytest.raises(PruningError, match="are not the logits"):
        personal_of(Doubled())
    with pytest.raises(ModelError, match="linear one with a bias and 6 outputs, found last"):
        personal_of(Doubled(bias=False))
    with pytest.raises(PruningError, match=r"classifier\.1, which is pruned weight by weight"):
        personalize_photos(resnet, mine, replace(CONFIG, default_exclusions=False))
    selection = select_layers_of(resnet, PLAIN)
    looked = look_at(resnet, selection, mine, batch_size=8)
    assert looked.logits.shape == (len(mine), 6)
    torch.testing.assert_close(looked.logits, logits_of(resnet, mine), atol=1e-4, rtol=1e-4)
    magnitude = replace(
        CONFIG, pruning=PruningConfig(score="magnitude", update="none"), batch_norm="keep"
    )
    adapted = adapt(resnet, selection, looked, magnitude)
    assert adapted.prior.kept.tolist() == [True, True, False, False, False, False]


def test_the_commands_say_what_is_whose(place, tmp_path, capsys):
    recipe, out = place / "recipe.yaml", tmp_path / "anna"
    code, text, _ = run(capsys, "personalize", "--recipe", recipe, "--user", "anna", "--out", out)
    assert code == 0
    assert "2 of 6 classes" in text
    assert Personal.load(out).config.output_prior == "em"
    code, text, _ = run(capsys, "evaluate", out, "--recipe", recipe)
    assert code == 0
    names = ("dense", "dense + prior", "pruned", "pruned + prior")
    for block in ("all 6 classes", "the user's 2"):
        rows = [line for line in text.splitlines() if "of the user" in line and block in line]
        assert len(rows) == 4
        assert all(name in row for name, row in zip(names, rows, strict=True))
    assert (
        text.index("the prior alone")
        < text.index("pruning alone")
        < text.index("pruning, with the prior")
    )
    code, text, _ = run(capsys, "evaluate", out, "--recipe", recipe, "--user", "anna", "--json")
    value = json.loads(text)["output_prior"]
    assert value["dense_prior_all_classes"]["among_classes"] == 6
    assert value["pruned_without_prior_user_classes"]["among_classes"] == 2
    assert value["dense_prior_other_classes"]["accuracy"] == 0
    code, text, _ = run(
        capsys, "personalize", "--recipe", recipe, "--user", "anna", "--out", tmp_path / "plain",
        "--output-prior", "none", "--json",
    )  # fmt: skip
    assert code == 0
    assert json.loads(text)["output_prior"] is None


def test_a_recipe_measures_everything_with_the_prior_and_without(photos, tmp_path):
    changes = {"exp": str(tmp_path), "users": ["anna"], "sparsity": [0.5], "methods": ["random"]}
    run_image_recipe(photos.recipe, 0, 4, changes)
    found = [read_image_result(each) for each in (tmp_path / "results" / "anna").iterdir()]
    wrong = {each.system: each.wrong_all for each in found}
    without = {system for system in wrong if system.output_prior == "none"}
    personal = ImageSystem("obs+least_squares", OWN, "match", 0.5, "em")
    assert personal in wrong
    for system in without - {DENSE_SYSTEM}:
        assert replace(system, output_prior="em") in wrong
    for calibration in (OWN, *CALIBRATIONS):
        assert ImageSystem(DENSE, calibration, "", 0.0, "em") in wrong
    assert len(wrong) == 1 + 3 + 2 * len(without - {DENSE_SYSTEM})
    test = photos.test("anna")
    model = load_image_model(photos.recipe.model)
    prior = estimate_prior(logits_of(model, photos.adapt("anna")).softmax(1))
    answers = with_prior(logits_of(model, test), prior).argmax(1)
    right = answers == torch.tensor([OUTPUTS[photo.label] for photo in test])
    assert (~right).tolist() == wrong[ImageSystem(DENSE, OWN, "", 0.0, "em")].tolist()
    # Of photos of other classes it learns never to answer with the user's.
    others = ImageSystem(DENSE, "other classes' photos", "", 0.0, "em")
    assert wrong[others].all()
    report = (tmp_path / "report" / "report.md").read_text()
    assert "| dense + prior | own photos |" in report
    assert "no gain of pruning" in report


def test_the_digits_with_a_prior_are_those_without_one():
    folder = Path(__file__).parent.parent / "recipes" / "digits"
    plain, prior = (read_recipe(folder / name) for name in ("digits.yaml", "prior.yaml"))
    assert (plain.config().output_prior, prior.config().output_prior) == ("none", "em")
    for name in ("model", "data_dir", "photos", "test_share", "users", "forgetting_photos", "seed"):
        assert getattr(plain, name) == getattr(prior, name), name
