"""SUTA and LoRA: their losses against loops, what moves and by how much, and that all is undone."""

import math
import sys
import warnings

import pytest
import torch
from tiny_whisper import tiny_whisper
from torch import nn

from fpspeech.corpora import read_audio
from fpspeech.demo import demo_folder, demo_model
from fpspeech.evaluation import baselines
from fpspeech.evaluation.baselines import (
    BaselineError,
    Lora,
    Suta,
    lora_on_pseudo_labels,
    suta_adapted,
    suta_objective,
    suta_parameters,
    suta_transcribe,
)
from fpspeech.models import Transcript, load_speech_model
from fpspeech.pruning import apply_masks, select_layers
from fpspeech.pruning.uncertainty import uncertainty

BLANK = 0
LARGE = dict(learning_rate=1e-2)  # so that a tiny model changes its mind


@pytest.fixture(scope="module", params=["tiny_group", "tiny_layer"])
def model(request):
    return load_speech_model(request.getfixturevalue(request.param), device="cpu")


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    return load_speech_model(tiny_whisper(tmp_path_factory.mktemp("whisper") / "w"), device="cpu")


@pytest.fixture(scope="module")
def demo():
    return load_speech_model(demo_model(), device="cpu")


@pytest.fixture(scope="module")
def recordings():
    folder = demo_folder() / "speakers" / "aria" / "adapt"
    return [read_audio(folder / f"aria-adapt-{number:02}.flac") for number in range(4)]


def windows(count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(6_000 + 1_000 * n, generator=generator) for n in range(count)]


def everything(network):
    """All that a baseline could leave behind: values, flags, modules, attributes, hooks."""
    return {
        "values": {name: value.clone() for name, value in network.state_dict().items()},
        "flags": [parameter.requires_grad for parameter in network.parameters()],
        "gradients": [parameter.grad for parameter in network.parameters()],
        "training": [module.training for module in network.modules()],
        "modules": [(name, id(module)) for name, module in network.named_modules()],
        "attributes": [sorted(vars(module)) for module in network.modules()],
        "hooks": [len(module._forward_hooks) for module in network.modules()],
    }


def assert_untouched(network, before):
    now = everything(network)
    values, old = now.pop("values"), before["values"]
    assert list(values) == list(old)
    assert all(torch.equal(values[name], old[name]) for name in old)
    assert now == {key: value for key, value in before.items() if key != "values"}


def test_the_objective_is_that_of_the_settings():
    logits = torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
    settings = Suta(temperature=1.5, entropy_share=0.6)
    expected = uncertainty(logits, BLANK, temperature=1.5, entropy_share=0.6)
    assert torch.equal(suta_objective(logits, BLANK, settings), expected)
    published = uncertainty(logits, BLANK, temperature=2.5, entropy_share=0.3)
    assert torch.equal(suta_objective(logits, BLANK), published)


def published_walk(network):
    """`collect_params` of the published code, LayerNorms and features: a list with repeats."""
    listed = []
    for name, module in network.named_modules():
        if isinstance(module, nn.LayerNorm):
            listed += [p for n, p in module.named_parameters() if n in ("weight", "bias")]
        parts = name.split(".")
        if len(parts) > 1 and parts[1] in ("feature_extractor", "feature_projection"):
            listed += [parameter for _, parameter in module.named_parameters()]
    return listed


def test_what_is_trained_and_how_often_is_what_the_published_code_lists(model):
    listed = published_walk(model.network)
    named = dict(model.network.named_parameters())
    times = suta_parameters(model.network)
    assert {id(named[name]): count for name, count in times.items()} == {
        id(parameter): sum(other is parameter for other in listed) for parameter in listed
    }
    front = "wav2vec2.feature_extractor.conv_layers"
    assert times[f"{front}.1.conv.weight"] == 4
    assert times["wav2vec2.feature_projection.projection.weight"] == 2
    assert times["wav2vec2.feature_projection.layer_norm.weight"] == 3
    assert times["wav2vec2.encoder.layers.0.final_layer_norm.bias"] == 1
    # A group norm is no LayerNorm: it is trained as a part of the feature extractor alone.
    layer_norm = isinstance(model.network.get_submodule(f"{front}.0.layer_norm"), nn.LayerNorm)
    assert times[f"{front}.0.layer_norm.weight"] == (5 if layer_norm else 4)
    assert not any("attention.q_proj" in name or "lm_head" in name for name in times)


def published_adaptation(model, window, settings):
    """The published loop with its optimiser over repeated parameters; returns what they become."""
    network, listed = model.network, published_walk(model.network)
    before = [(p, p.detach().clone(), p.requires_grad) for p in network.parameters()]
    for parameter in network.parameters():
        parameter.requires_grad_(any(parameter is other for other in listed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of duplicates
        optimiser = torch.optim.AdamW(listed, lr=settings.learning_rate, weight_decay=0.0)
    inputs = model._inputs([window])
    for _ in range(settings.steps):
        suta_objective(network(**inputs).logits[0], BLANK, settings).backward()
        optimiser.step()
        network.zero_grad()
    adapted = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.no_grad():
        for parameter, values, flag in before:
            parameter.copy_(values)
            parameter.requires_grad_(flag)
            parameter.grad = None
    return adapted


@pytest.mark.parametrize("steps", [1, 4])
def test_repeated_steps_move_every_weight_to_where_the_published_optimiser_does(model, steps):
    settings = Suta(steps=steps, learning_rate=1e-3)
    expected = published_adaptation(model, windows()[0], settings)
    with suta_adapted(model, windows()[0], settings):
        found = model.network.state_dict()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_in_the_first_step_a_weight_moves_as_many_times_as_it_is_listed(model):
    """Adam's first step is the learning rate, whatever the gradient."""
    start = {name: value.clone() for name, value in model.network.named_parameters()}
    rate = 1e-4
    for repeated in (True, False):
        with suta_adapted(model, windows()[0], Suta(1, rate, repeated=repeated)):
            moved = {n: (p - start[n]).abs().max() for n, p in model.network.named_parameters()}
        for name, count in suta_parameters(model.network).items():
            expected = rate * (count if repeated else 1)
            assert moved[name].item() == pytest.approx(expected, rel=0.02), name
        fixed = [name for name in moved if name not in suta_parameters(model.network)]
        assert fixed
        assert all(moved[name] == 0 for name in fixed)


def test_suta_leaves_the_model_bit_for_bit(model):
    before = everything(model.network)
    first = model.transcribe(windows()[:1])
    suta_transcribe(model, windows(), Suta(steps=2, **LARGE))
    assert_untouched(model.network, before)
    assert model.transcribe(windows()[:1]) == first


def test_gradients_and_flags_that_were_there_are_put_back(model):
    network = model.network
    parameter = network.lm_head.weight
    parameter.requires_grad_(False)
    own = network.wav2vec2.encoder.layer_norm.weight
    own.grad = torch.ones_like(own)
    gradient = own.grad
    try:
        suta_transcribe(model, windows()[0], Suta(steps=1))
        assert not parameter.requires_grad
        assert own.grad is gradient
        assert bool((gradient == 1).all())
    finally:
        parameter.requires_grad_(True)
        own.grad = None


@pytest.mark.parametrize("where", ["in the block", "in a step"])
def test_suta_leaves_the_model_bit_for_bit_after_an_exception(model, monkeypatch, where):
    before = everything(model.network)
    if where == "in a step":
        losses = iter([baselines.suta_objective] * 2)
        monkeypatch.setattr(baselines, "suta_objective", lambda *args: next(losses)(*args))
        with pytest.raises((StopIteration, RuntimeError)), suta_adapted(model, windows()[0]):
            pass
    else:
        with pytest.raises(KeyError), suta_adapted(model, windows()[0], Suta(2, **LARGE)):
            raise KeyError
    assert_untouched(model.network, before)


def test_masks_in_force_are_in_force_again(model):
    layers = select_layers(model.network).layers
    masks = {layer.name: torch.rand(layer.shape) > 0.5 for layer in layers}
    before = everything(model.network)
    with apply_masks(layers, masks):
        masked = everything(model.network)
        suta_transcribe(model, windows()[0], Suta(2, **LARGE))
        assert_untouched(model.network, masked)
    assert_untouched(model.network, before)


def test_every_window_is_adapted_to_from_the_same_model(model):
    settings = Suta(steps=2, **LARGE)
    alone = [suta_transcribe(model, window, settings).text for window in windows()]
    together = suta_transcribe(model, windows(), settings)
    assert together == Transcript(" ".join(filter(None, alone)))
    assert suta_transcribe(model, iter(windows()), settings) == together
    assert suta_transcribe(model, [], settings) == Transcript("")


def test_it_works_where_gradients_are_switched_off(model):
    expected = suta_transcribe(model, windows()[0], Suta(2, **LARGE))
    with torch.inference_mode():
        assert suta_transcribe(model, windows()[0], Suta(2, **LARGE)) == expected


def test_suta_lowers_its_objective_on_a_recording_and_says_so_twice_alike(demo, recordings):
    found = []
    for _ in range(2):
        with suta_adapted(demo, recordings[0], Suta(steps=4)) as objectives:
            found.append(objectives)
            after = suta_objective(demo.logits(recordings[0]), BLANK).item()
    assert found[0] == found[1]
    assert len(objectives) == 4
    assert after < objectives[-1] < objectives[0]
    assert objectives[0] == suta_objective(demo.logits(recordings[0]), BLANK).item()


@pytest.fixture
def deaf(model):
    """The same model where every frame is blank."""
    bias = model.network.lm_head.bias
    before = bias.detach().clone()
    with torch.no_grad():
        bias[BLANK] += 1e4
    yield model
    with torch.no_grad():
        bias.copy_(before)


def test_a_window_of_blanks_is_adapted_to_without_nan(deaf):
    with suta_adapted(deaf, windows()[0]) as objectives:
        assert all(math.isfinite(value) for value in objectives)
        assert bool(torch.isfinite(deaf.logits(windows()[0])).all())
    assert suta_transcribe(deaf, windows()[0]) == Transcript("")


def test_suta_is_for_ctc_models(whisper):
    with pytest.raises(BaselineError, match="frames of a CTC model, found Whisper"):
        suta_transcribe(whisper, windows()[0])


def test_an_objective_that_is_not_finite_is_an_error_and_undone(model):
    before = everything(model.network)
    with pytest.raises(BaselineError, match=r"objective at step \d is nan"):
        suta_transcribe(model, windows()[0], Suta(learning_rate=1e30))
    assert_untouched(model.network, before)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Suta(steps=0), "1 step or more, found 0"),
        (lambda: Suta(learning_rate=0), "learning rate above 0"),
        (lambda: Suta(temperature=-1), "temperature above 0"),
        (lambda: Suta(entropy_share=1.5), "0 <= entropy_share <= 1, found 1.5"),
        (lambda: Lora(rank=0), "rank of 1 or more"),
        (lambda: Lora(alpha=0), "alpha above 0"),
        (lambda: Lora(targets=()), "at least one target"),
        (lambda: Lora(passes=0), "1 pass or more"),
        (lambda: Lora(batch=0), "1 window a step"),
        (lambda: Lora(learning_rate=-1), "learning rate above 0"),
        (lambda: Lora(confident_share=0), "0 < confident_share <= 1, found 0"),
    ],
)
def test_settings_out_of_range_are_refused(make, expected):
    with pytest.raises(BaselineError, match=expected):
        make()


@pytest.fixture(params=["ctc", "whisper"])
def recogniser(request):
    if request.param == "whisper":
        return request.getfixturevalue("whisper")
    return load_speech_model(request.getfixturevalue("tiny_group"), device="cpu")


def test_lora_trains_and_leaves_the_model_bit_for_bit(recogniser):
    settings = Lora(rank=2, passes=5, batch=4)  # all windows a step, so that losses compare
    before = everything(recogniser.network)
    with lora_on_pseudo_labels(recogniser, windows(4), settings) as training:
        inside = dict(recogniser.network.named_parameters())
        added = {name: p for name, p in inside.items() if "lora_" in name}
        assert training.parameters == sum(p.numel() for p in added.values()) > 0
        assert all(bool(p.any()) for name, p in added.items() if "lora_B" in name)
        for name, value in before["values"].items():  # what is underneath has not moved
            parent, _, leaf = name.rpartition(".")
            wrapped = f"{parent}.base_layer.{leaf}"
            found = inside.get(wrapped, recogniser.network.state_dict().get(name))
            assert torch.equal(found, value), name
        recogniser.transcribe(windows(1))
    assert_untouched(recogniser.network, before)
    assert training.windows + training.unheard + training.unsure == 4
    assert len(training.losses) == 5
    assert training.losses[-1] < training.losses[0]


def test_lora_on_real_recordings_lowers_its_loss(demo, recordings):
    before = everything(demo.network)
    with lora_on_pseudo_labels(demo, recordings, Lora(passes=5)) as training:
        pass
    assert training.losses[-1] < 0.9 * training.losses[0]
    assert_untouched(demo.network, before)


def test_before_the_first_step_the_loss_is_that_of_the_plain_model(recogniser):
    """B starts at zero, so the additions change nothing."""
    (window,) = windows(1, seed=3)
    with lora_on_pseudo_labels(recogniser, [window], Lora(rank=2, passes=1)) as training:
        pass
    assert training.losses == (pytest.approx(plain_loss(recogniser, window), rel=1e-5),)


def plain_loss(model, window):
    """Nats a token of what the model hears: by a sum over all CTC paths, or token by token."""
    if model.family == "whisper":
        (decoded,) = model.decode([window])
        fed = [*model.prompt[0].tolist()]
        total = 0.0
        for token in decoded.tokens:
            with torch.no_grad():
                logits = model.network(
                    model._features([window]), decoder_input_ids=torch.tensor([fed])
                ).logits[0, -1]
            total -= logits.log_softmax(-1)[token].item()
            fed.append(token)
        return total / len(decoded.tokens)
    posteriors = model.logits(window).double().softmax(-1)
    best = posteriors.argmax(-1).tolist()
    labels = [a for a, b in zip(best, [None, *best], strict=False) if a not in (b, BLANK)]
    path = [BLANK]
    for label in labels:
        path += [label, BLANK]
    alpha = {0: posteriors[0, path[0]].item(), 1: posteriors[0, path[1]].item()}
    for frame in posteriors[1:]:
        after = {}
        for state, label in enumerate(path):
            total = alpha.get(state, 0.0) + alpha.get(state - 1, 0.0)
            if label != BLANK and state > 1 and path[state - 2] != label:
                total += alpha.get(state - 2, 0.0)
            after[state] = total * frame[label].item()
        alpha = after
    return -math.log(alpha[len(path) - 1] + alpha[len(path) - 2]) / len(labels)


def test_the_same_seed_gives_the_same_bits_and_disturbs_no_other_draw(recogniser):
    def trained(seed):
        with lora_on_pseudo_labels(
            recogniser, windows(3), Lora(rank=2, batch=2, passes=1, seed=seed)
        ) as training:
            state = recogniser.network.state_dict()
            return training, [v.clone() for n, v in state.items() if "lora_" in n]

    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, weights = trained(0)
    assert torch.equal(torch.rand(3), expected)
    again, same = trained(0)
    assert first == again
    assert all(torch.equal(a, b) for a, b in zip(weights, same, strict=True))
    other, _ = trained(1)
    assert other.losses != first.losses


def test_the_model_is_put_back_after_an_exception(recogniser):
    before = everything(recogniser.network)
    with pytest.raises(KeyError), lora_on_pseudo_labels(recogniser, windows(2), Lora(rank=2)):
        raise KeyError
    assert_untouched(recogniser.network, before)
    with (
        pytest.raises(BaselineError, match=r"loss of LoRA at step \d is"),
        lora_on_pseudo_labels(recogniser, windows(2), Lora(learning_rate=1e30, passes=5)),
    ):
        pass
    assert_untouched(recogniser.network, before)


def test_targets_that_are_not_there_are_named(recogniser):
    before = everything(recogniser.network)
    with (
        pytest.raises(BaselineError, match=r"no layers named \['query'\].*such as q_proj"),
        lora_on_pseudo_labels(recogniser, windows(1), Lora(targets=("query",))),
    ):
        pass
    assert_untouched(recogniser.network, before)


def test_the_confident_are_trained_on_and_the_others_counted(recogniser):
    given = windows(4)
    heard = [baselines._pseudo_label(recogniser, window) for window in given]
    heard = [example for example in heard if example is not None]
    chosen = baselines._most_confident(heard, 0.5)
    assert len(chosen) == math.ceil(len(heard) / 2)
    lowest = min(example.confidence for example in chosen)
    left = [e for e in heard if not any(e is other for other in chosen)]
    assert all(example.confidence <= lowest for example in left)
    settings = Lora(rank=2, passes=1, confident_share=0.5)
    with lora_on_pseudo_labels(recogniser, given, settings) as training:
        pass
    assert (training.windows, training.unsure) == (len(chosen), len(left))


def test_outputs_cut_at_their_cap_teach_nothing(whisper, monkeypatch):
    monkeypatch.setattr(whisper, "max_new_tokens", 1)
    with (
        pytest.raises(BaselineError, match="hears nothing in any of 2 windows"),
        lora_on_pseudo_labels(whisper, windows(2)),
    ):
        pass


def test_windows_of_blanks_teach_nothing(deaf):
    with (
        pytest.raises(BaselineError, match="hears nothing in any of 3 windows"),
        lora_on_pseudo_labels(deaf, windows()),
    ):
        pass
    with (
        pytest.raises(BaselineError, match="hears nothing in any of 0 windows"),
        lora_on_pseudo_labels(deaf, []),
    ):
        pass


def test_without_peft_the_error_says_what_to_install(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with (
        pytest.raises(BaselineError, match=r"pip install 'fpspeech\[baselines\]'"),
        lora_on_pseudo_labels(model, windows()),
    ):
        pass


def test_another_family_is_refused():
    class Other:
        source = None
        network = nn.Linear(2, 2)

    with (
        pytest.raises(BaselineError, match="knows Wav2Vec2 and Whisper, found Other"),
        lora_on_pseudo_labels(Other(), windows(1)),
    ):
        pass
