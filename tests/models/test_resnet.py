import json
from io import BytesIO

import numpy as np
import pytest
import torch
from tiny_resnet import CLASSES, picture, write_tiny_resnet
from torch import nn

from fpspeech import Config, PruningConfig
from fpspeech.corpora.images import Photo
from fpspeech.images import personalize_photos
from fpspeech.models import ImageModel, ModelError, load_image_model, load_speech_model
from fpspeech.personal import Personal, merge
from fpspeech.personalize_speech import select_layers_of
from fpspeech.pruning import Observer

PICTURES = [picture(kind, 0) for kind in range(3)]


@pytest.fixture(scope="module", params=["basic", "bottleneck"])
def folder(request, tmp_path_factory):
    place = tmp_path_factory.mktemp("resnet") / "tiny"
    return write_tiny_resnet(place, request.param)


def test_logits_are_those_of_stock_transformers(folder):
    from transformers import AutoImageProcessor, ResNetForImageClassification

    model = load_image_model(folder)
    stock = ResNetForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    with torch.inference_mode():
        expected = stock(**processor(images=PICTURES, return_tensors="pt")).logits
    assert torch.equal(model.logits(PICTURES), expected)
    assert model.labels == CLASSES


def test_the_first_convolution_and_the_classifier_stay_dense_and_all_else_is_pruned(folder):
    selection = select_layers_of(load_image_model(folder), Config())
    assert {each.name for each in selection.excluded} == {
        "resnet.embedder.embedder.convolution",
        "classifier.1",
    }
    assert all(each.reason for each in selection.excluded)
    assert all("encoder" in layer.name for layer in selection.layers)
    assert any("shortcut" in layer.name for layer in selection.layers)


def test_components_are_stages(folder):
    model = load_image_model(folder)
    config = Config(components=(("stage2", 0.75),), pruning=PruningConfig(sparsity=0.25))
    personal = personalize_photos(model, photos(), config)
    for name, mask in personal.masks.items():
        inputs = mask.shape[-1]
        pruned = int(inputs * (0.75 if "stages.1" in name else 0.25))
        assert ((~mask).sum(-1) == pruned).all(), name


def photos() -> list[Photo]:
    found = []
    for kind in range(2):
        for number in range(4):
            written = BytesIO()
            picture(kind, number).save(written, "png")
            found.append(Photo(f"{kind}-{number}", written.getvalue()))
    return found


def test_observing_counts_every_picture_once(folder):
    model = load_image_model(folder)
    selection = select_layers_of(model, Config())
    together, apart = Observer(selection.layers), Observer(selection.layers)
    model.observe(PICTURES, together)
    for one in PICTURES:
        model.observe([one], apart)
    for name, found in together.statistics().items():
        assert found.count == apart.statistics()[name].count
        alone = apart.statistics()[name].mean_absolute
        torch.testing.assert_close(found.mean_absolute, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("update", ["none", "least_squares"])
def test_the_whole_pipeline_saved_loaded_applied_restored_and_merged(folder, tmp_path, update):
    from transformers import ResNetForImageClassification

    model = load_image_model(folder)
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    dense = model.logits(PICTURES)
    config = Config(pruning=PruningConfig(sparsity=0.5, update=update), batch_size=4)
    personal = personalize_photos(model, photos(), config)
    assert personal.values
    personal.save(tmp_path / "personal")
    loaded = Personal.load(tmp_path / "personal")
    assert loaded.values.keys() == personal.values.keys()
    with personal.apply(model):
        expected = model.logits(PICTURES)
    with loaded.apply(model):
        assert torch.equal(model.logits(PICTURES), expected)
        assert not torch.equal(expected, dense)
    state = model.network.state_dict()
    assert state.keys() == before.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
    assert torch.equal(model.logits(PICTURES), dense)

    merge(loaded, model, tmp_path / "merged")
    stock = ResNetForImageClassification.from_pretrained(tmp_path / "merged").eval()
    assert stock.state_dict().keys() == before.keys()
    merged = load_image_model(tmp_path / "merged")
    assert torch.equal(merged.logits(PICTURES), expected)
    with torch.inference_mode():
        pixels = model.preprocess(PICTURES)
        assert torch.equal(stock(pixels).logits, expected)
    for name in personal.values:
        assert torch.equal(stock.state_dict()[name], personal.values[name])


def test_the_artifact_tells_no_label_no_name_and_no_path(folder, tmp_path):
    personal = personalize_photos(load_image_model(folder), photos(), Config(batch_size=4))
    personal.save(tmp_path / "personal")
    for path in (tmp_path / "personal").iterdir():
        content = path.read_bytes()
        assert str(tmp_path).encode() not in content
        assert b"0-1" not in content  # an id
        assert not any(name.encode() in content for name in ('ant"', 'bee"'))
    card = (tmp_path / "personal" / "README.md").read_text()
    assert "8 of one user's unlabeled photos" in card
    assert "image-classification" in card
    assert "speech" not in card.replace("fpspeech", "")


def test_the_older_processor_files_of_the_hub_load(tmp_path):
    older = {  # as microsoft/resnet-50 has it
        "crop_pct": 0.875,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "ConvNextFeatureExtractor",
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 3,
        "size": 224,
    }
    model = load_image_model(write_tiny_resnet(tmp_path / "tiny", processor=older))
    assert model.preprocess(PICTURES).shape == (3, 3, 224, 224)


def test_pictures_are_resized_and_cropped_like_the_numbers_say(folder):
    from PIL import Image

    model = load_image_model(folder)
    wide = picture(1, 1, size=(72, 36))  # shortest edge to 32 / 0.875 = 36, then the middle 32
    expected = wide.resize((72, 36), Image.Resampling.BICUBIC).crop((20, 2, 52, 34))
    pixels = torch.from_numpy(np.array(expected, dtype=np.float32)).permute(2, 0, 1)
    found = model.preprocess([wide])[0]
    torch.testing.assert_close(found, (pixels / 255 - 0.5) / 0.5, atol=1e-5, rtol=0)


def test_errors_name_the_remedy(tmp_path):
    place = write_tiny_resnet(tmp_path / "tiny")
    with pytest.raises(ModelError, match=r"expected one of \['wav2vec2', 'whisper'\]"):
        load_speech_model(place)
    (place / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match=r"preprocessor_config.json"):
        load_image_model(place)
    write_tiny_resnet(place)
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, "model_type": "resnest"}))
    with pytest.raises(ModelError, match="such as resnet"):
        load_image_model(place)
    (place / "config.json").write_text(json.dumps({**config, "num_channels": 1}))
    with pytest.raises((ModelError, RuntimeError)):
        load_image_model(place)


def test_a_checkpoint_without_a_classifier_is_refused(tmp_path):
    from transformers import ResNetConfig, ResNetModel

    place = write_tiny_resnet(tmp_path / "tiny")
    config = ResNetConfig.from_pretrained(place)
    ResNetModel(config).save_pretrained(place)
    with pytest.raises(ModelError, match="lacks weights"):
        load_image_model(place)


def plain_network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def to_pixels(pictures) -> torch.Tensor:
    small = [np.asarray(each.resize((16, 16)), dtype=np.float32) for each in pictures]
    return torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2) / 255


def test_any_torch_classifier_goes_the_same_way(tmp_path):
    from safetensors.torch import load_file

    model = ImageModel(plain_network(), to_pixels, labels=["a", "b", "c", "d"])
    assert model.exclusions.keys() == {"0", "8"}
    personal = personalize_photos(model, photos(), Config(batch_size=3))
    assert set(personal.masks) == {"3"}
    personal.save(tmp_path / "personal")
    again = ImageModel(plain_network(), to_pixels, labels=["a", "b", "c", "d"])
    with Personal.load(tmp_path / "personal").apply(again):
        expected = again.logits(PICTURES)
    merge(personal, model, tmp_path / "merged")
    stock = plain_network()
    stock.load_state_dict(load_file(tmp_path / "merged" / "model.safetensors"))
    with torch.inference_mode():
        assert torch.equal(stock.eval()(to_pixels(PICTURES)), expected)


def test_labels_and_outputs_must_agree():
    model = ImageModel(plain_network(), to_pixels, labels=["a", "b"])
    with pytest.raises(ModelError, match=r"\(3, 2\)"):
        model.logits(PICTURES)
