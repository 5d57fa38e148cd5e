"""The sites of each family: what is counted there, and folding against hooks."""

from functools import partial

import pytest
import torch
from torch import nn

from fpspeech.models import load_speech_model
from fpspeech.pruning import FeatureMap, FeatureObserver, apply_masks, folded

WINDOWS = [
    0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(samples))
    for samples in (9_000, 16_000, 12_345)
]


@pytest.fixture(params=["tiny_group", "tiny_layer", "tiny_whisper_folder"])
def model(request):
    """Wav2Vec2 with post-norm and with pre-norm, and Whisper."""
    return load_speech_model(request.getfixturevalue(request.param), device="cpu")


def sites_of(model):
    return [site for group in model.sites.values() for site in group]


def answer(model, windows):
    """What the windows lead to: logits, of a Whisper along some tokens."""
    if model.family == "wav2vec2":
        return torch.cat([model.logits(window) for window in windows])
    features = model._features(windows)
    tokens = torch.tensor([[*model.prompt[0].tolist(), 3, 4, 5, 6]]).repeat(len(windows), 1)
    with torch.no_grad():
        return model.network(features, decoder_input_ids=tokens, use_cache=False).logits


def modules_run(model):
    """Names of modules in the order that their outputs come."""
    seen = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: seen.append(name))
        for name, module in model.network.named_modules()
    ]
    answer(model, WINDOWS[:1])
    for handle in handles:
        handle.remove()
    return list(dict.fromkeys(seen))


def test_sites_are_early_places_in_the_order_they_run(model):
    names = [site.name for site in sites_of(model)]
    order = modules_run(model)
    assert names == sorted(names, key=order.index)
    assert len(names) == len(set(names))
    module = dict(model.network.named_modules())
    assert all(isinstance(module[name], (nn.LayerNorm, nn.Linear, nn.Conv1d)) for name in names)
    assert not any(".layers.1." in name for name in names)  # of two layers the first is early
    if model.family == "whisper":
        assert list(model.sites) == ["conv1", "conv2", "layer0"]
    else:
        assert list(model.sites) == ["features", "projection", "layer0"]


def test_the_readers_of_a_site_are_all_that_reads_it(model):
    """Who takes the very tensor in that a site puts out; a residual stream has other readers."""
    network = model.network
    puts_out, takes_in = {}, {}

    def remember(module, args, kwargs, output, name):
        if isinstance(output, torch.Tensor):
            puts_out[name] = output
        inputs = [*args, *kwargs.values()]
        takes_in[name] = [each for each in inputs if isinstance(each, torch.Tensor)]

    handles = [
        module.register_forward_hook(
            lambda module, args, kwargs, output, name=name: remember(
                module, args, kwargs, output, name
            ),
            with_kwargs=True,
        )
        for name, module in network.named_modules()
        if not list(module.children())
    ]
    answer(model, WINDOWS[:1])
    for handle in handles:
        handle.remove()
    for site in sites_of(model):
        readers = {
            name
            for name, inputs in takes_in.items()
            if any(each is puts_out[site.name] for each in inputs)
        }
        if site.readers:
            assert readers == set(site.readers), site.name


def some_map(features, full, seed):
    generator = torch.Generator().manual_seed(seed)
    spread = torch.randn(features, features, generator=generator).double()
    matrix = torch.eye(features).double() + 0.1 * (spread + spread.T)
    shift = 0.3 * torch.randn(features, generator=generator).double()
    return FeatureMap(matrix if full else matrix.diagonal().clone(), shift)


def change(feature_map):
    def hook(module, args, output):
        if isinstance(module, nn.Conv1d):
            return feature_map(output.transpose(1, 2)).transpose(1, 2)
        return feature_map(output)

    return hook


@pytest.mark.parametrize("full", [False, True])
def test_folding_is_the_map_on_the_way_at_every_site(model, full):
    dense = answer(model, WINDOWS[:1])
    checked = 0
    for seed, site in enumerate(sites_of(model)):
        module = model.network.get_submodule(site.name)
        if full and isinstance(module, nn.LayerNorm) and not site.readers:
            continue  # post-norm: only a diagonal map can be folded
        checked += 1
        feature_map = some_map(module.weight.shape[0], full, seed)
        handle = module.register_forward_hook(change(feature_map))
        expected = answer(model, WINDOWS[:1])
        handle.remove()
        with apply_masks(
            [], {}, network=model.network, values=folded(model.network, site, feature_map)
        ):
            found = answer(model, WINDOWS[:1])
        scale = float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * scale, msg=site.name)
        assert (expected - dense).abs().max() > 1e-3 * scale, site.name
        assert torch.equal(answer(model, WINDOWS[:1]), dense)
    assert checked >= 2


def keep(seen, name, module, args, output):
    seen[name] = output.detach()


def slow_moments(rows):
    mean = rows.mean(0)
    centred = rows - mean
    return mean, sum(torch.outer(row, row) for row in centred) / len(rows)


def frames(model, name, samples):
    """How many positions of a site hold a window's own audio."""
    if model.family == "whisper":
        return -(-samples // (160 if name.endswith("conv1") else 320))
    config = model.network.config
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        samples = (samples - kernel) // stride + 1
    return samples


def test_listening_counts_the_own_audio_of_each_window_in_batches_and_singly(model):
    sites = sites_of(model)
    batch, single = (FeatureObserver(model.network, sites) for _ in range(2))
    rows = {site.name: [] for site in sites}
    model.listen(WINDOWS, batch)
    for window in WINDOWS:
        model.listen([window], single)
        seen = {}
        handles = [
            model.network.get_submodule(name).register_forward_hook(partial(keep, seen, name))
            for name in rows
        ]
        answer(model, [window])
        for handle in handles:
            handle.remove()
        for name, output in seen.items():
            is_conv = isinstance(model.network.get_submodule(name), nn.Conv1d)
            features = output[0].T if is_conv else output[0]
            rows[name].append(features[: frames(model, name, len(window))].double())
    for found in (batch.moments(), single.moments()):
        assert list(found) == list(rows)
        for name, moments in found.items():
            expected = torch.cat(rows[name])
            assert moments.count == len(expected), name
            mean, covariance = slow_moments(expected)
            scale = float(covariance.diagonal().max())
            torch.testing.assert_close(moments.mean, mean, rtol=1e-4, atol=1e-4, msg=name)
            torch.testing.assert_close(
                moments.covariance, covariance, rtol=1e-3, atol=1e-4 * scale, msg=name
            )


def test_listening_and_observing_count_the_same_features(model):
    heard, observed = (FeatureObserver(model.network, sites_of(model)) for _ in range(2))
    model.listen(WINDOWS[:1], heard)
    model.observe(WINDOWS[:1], observed)
    for name, moments in observed.moments().items():
        assert heard.moments()[name].count == moments.count
        torch.testing.assert_close(heard.moments()[name].covariance, moments.covariance)


def test_whisper_listens_without_its_decoder(tiny_whisper_folder):
    model = load_speech_model(tiny_whisper_folder, device="cpu")
    model.network.model.decoder.forward = None  # calling it would be an error
    observer = FeatureObserver(model.network, sites_of(model))
    model.listen(WINDOWS, observer)
    assert observer.moments().keys() == {site.name for site in sites_of(model)}
