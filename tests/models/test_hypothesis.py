"""What a model wrote for a window and how sure it was, against loops over positions."""

import math

import pytest
import torch

from fpspeech.demo import demo_model
from fpspeech.models import ModelError, load_speech_model
from fpspeech.pruning.uncertainty import uncertainty

GENERATOR = torch.Generator().manual_seed(3)
WINDOWS = [
    torch.randn(samples, generator=GENERATOR) * 0.1 * torch.linspace(0, pitch, samples).sin()
    for samples, pitch in ((16_000, 30), (24_001, 100), (40_007, 300))
]


@pytest.fixture(params=["tiny_group", "tiny_layer", "tiny_whisper_folder"])
def model(request):
    return load_speech_model(request.getfixturevalue(request.param), device="cpu")


@pytest.fixture
def whisper(tiny_whisper_folder):
    return load_speech_model(tiny_whisper_folder, device="cpu")


def slow_entropy(posterior):
    return -sum(p * math.log(p) for p in posterior.double().exp().tolist() if p > 0)


def test_the_text_is_that_of_transcribe(model):
    texts = []
    for window in WINDOWS:
        found, transcript = model.hypothesis(window), model.transcribe([window])
        assert found.text == transcript.text
        assert found.at_cap == bool(transcript.at_cap)
        texts.append(found.text)
    assert any(texts)


def test_uncertainty_is_that_of_the_logits_where_it_is_known(model):
    for window in WINDOWS:
        found = model.hypothesis(window).uncertainty
        if model.gains:
            assert found == pytest.approx(
                float(uncertainty(model.logits(window), model.blank)), rel=1e-5
            )
        else:
            assert found is None


def test_hypotheses_are_the_same_every_time(model):
    for window in WINDOWS[:2]:
        first, second = model.hypothesis(window), model.hypothesis(window)
        assert (first.tokens, first.entropy) == (second.tokens, second.entropy)
        assert first.log_probability == second.log_probability


@pytest.mark.parametrize("name", ["tiny_group", "tiny_layer", "demo"])
def test_blank_frames_of_ctc_are_not_informative(name, request):
    folder = demo_model() if name == "demo" else request.getfixturevalue(name)
    model = load_speech_model(folder, device="cpu")
    blank = model.processor.tokenizer.pad_token_id
    blanks = letters = 0
    for window in WINDOWS:
        found = model.hypothesis(window)
        posteriors = found.log_posteriors
        assert posteriors.shape == model.logits(window).shape
        torch.testing.assert_close(posteriors.exp().sum(-1), torch.ones(len(posteriors)))
        entropy = log_probability = 0.0
        informative = 0
        for frame, token in zip(posteriors, found.tokens, strict=True):
            assert token == int(frame.argmax())
            log_probability += float(frame[token])
            if token != blank:
                entropy += slow_entropy(frame)
                informative += 1
        assert found.informative == informative
        assert found.entropy == pytest.approx(entropy, rel=1e-4)
        assert found.log_probability == pytest.approx(log_probability, rel=1e-4)
        assert not found.at_cap
        blanks += len(found.tokens) - informative
        letters += informative
    assert letters
    assert blanks or name != "demo"


def test_nothing_but_blanks_is_no_entropy(tiny_layer):
    model = load_speech_model(tiny_layer, device="cpu")
    blank = model.processor.tokenizer.pad_token_id
    with torch.no_grad():
        model.network.lm_head.bias[blank] += 1e4
    found = model.hypothesis(WINDOWS[0])
    assert (found.text, found.entropy, found.informative) == ("", 0.0, 0)


def without_suppressed(model, posteriors):
    """The softmaxes over what may be written: at first the end may not be."""
    settings = model.network.generation_config
    allowed = posteriors.clone()
    allowed[:, settings.suppress_tokens] = -math.inf
    allowed[0, settings.begin_suppress_tokens] = -math.inf
    return allowed.log_softmax(-1)


def test_posteriors_along_its_own_tokens_are_what_whisper_decided_by(whisper):
    ended = set()
    for window in WINDOWS:
        written = whisper.hypothesis(window)
        assert written.log_posteriors is None  # it was not asked
        found = whisper.hypothesis(window, written.tokens)
        posteriors = found.log_posteriors
        assert posteriors.shape == (len(written.tokens), whisper.network.config.vocab_size)
        torch.testing.assert_close(posteriors.exp().sum(-1), torch.ones(len(posteriors)))
        allowed = without_suppressed(whisper, posteriors)
        assert tuple(allowed.argmax(-1).tolist()) == written.tokens == found.tokens
        chosen = [float(row[token]) for row, token in zip(allowed, written.tokens, strict=True)]
        assert found.log_probability == pytest.approx(sum(chosen), rel=1e-4)
        entropy = sum(slow_entropy(row) for row in allowed)
        assert found.entropy == pytest.approx(entropy, rel=1e-4)
        assert found.informative == len(written.tokens)
        ended.add(found.at_cap)
    assert ended == {True, False}, "one output should end, another be cut"


def test_posteriors_along_other_tokens_are_those_of_a_plain_pass(whisper):
    along = (3, 2, 5, 4, 1)
    found = whisper.hypothesis(WINDOWS[0], along)
    features = whisper.feature_extractor(
        WINDOWS[0].numpy(), sampling_rate=16_000, return_tensors="pt"
    ).input_features
    prompt = whisper.prompt[0].tolist()
    fed = torch.tensor([[*prompt, *along]])
    with torch.no_grad():
        logits = whisper.network(features, decoder_input_ids=fed, use_cache=False).logits[0]
    # The last of `along` is answered by nothing that was asked for.
    expected = logits[len(prompt) - 1 : -1].log_softmax(-1)
    torch.testing.assert_close(found.log_posteriors, expected, rtol=1e-4, atol=1e-4)
    assert found.tokens == whisper.hypothesis(WINDOWS[0]).tokens  # its own all the same


def test_entropies_of_a_batch_equal_those_of_single_windows(whisper):
    for decoded, window in zip(whisper.decode(WINDOWS), WINDOWS, strict=True):
        alone = whisper.hypothesis(window)
        assert decoded.tokens == alone.tokens
        assert decoded.entropy == pytest.approx(alone.entropy, rel=1e-3)
        assert decoded.log_probability == pytest.approx(alone.log_probability, rel=1e-3)


def test_a_window_that_is_too_long_is_refused(whisper):
    with pytest.raises(ModelError, match=r"at most 30 s at once, found 31\.00 s"):
        whisper.hypothesis(torch.zeros(31 * 16_000))
