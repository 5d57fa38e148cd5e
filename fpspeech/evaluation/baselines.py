"""What gradients would do with the same unlabeled audio; the one module with a backward pass.

Baselines to measure pruning against, not a part of it: SUTA, which adapts a CTC model to every
utterance anew, and LoRA on a model's own transcripts. Both leave the model as it was, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor, nn

from fpspeech.models.speech_model import SpeechModel, Transcript
from fpspeech.models.wav2vec2 import Wav2Vec2
from fpspeech.models.whisper import Whisper
from fpspeech.pruning import evaluation_mode
from fpspeech.pruning.uncertainty import ENTROPY_SHARE, TEMPERATURE, uncertainty


class BaselineError(ValueError):
    """A baseline that cannot be run on this model, with these settings or on this audio."""


@dataclass(frozen=True)
class Suta:
    """Settings of SUTA; the defaults are the published ones (Lin, Li, Lee, Interspeech 2022).

    steps: of AdamW for each window, from the unadapted model. temperature: divides the logits.
    entropy_share: weight of the entropy of non-blank frames; the rest is minimum class confusion.
    repeated: the published code hands most weights of the feature extractor to its optimiser
    four times and those of the feature projection two or three times, and so moves them as often
    in every step (see `suta_parameters`). The published numbers are made that way; False steps
    every weight once. Raises BaselineError on values out of range.
    """

    steps: int = 10
    learning_rate: float = 2e-5
    temperature: float = TEMPERATURE
    entropy_share: float = ENTROPY_SHARE
    repeated: bool = True

    def __post_init__(self) -> None:
        _require(self.steps >= 1, "1 step or more", self.steps)
        _require(self.learning_rate > 0, "a learning rate above 0", self.learning_rate)
        _require(self.temperature > 0, "a temperature above 0", self.temperature)
        _require(0 <= self.entropy_share <= 1, "0 <= entropy_share <= 1", self.entropy_share)


def suta_transcribe(
    model: Wav2Vec2, windows: Tensor | Iterable[Tensor], settings: Suta | None = None
) -> Transcript:
    """Best-path CTC text of a recording, each window heard by a model adapted to it alone.

    windows: one window of float32 samples, shape (samples,), or the consecutive windows of a
    recording. Masks in force on the model do not hold while it adapts: what it trains, it trains
    dense. Raises BaselineError for a model without CTC and for an objective that is not finite.
    """
    heard: list[str] = []
    for window in [windows] if isinstance(windows, Tensor) else windows:
        with suta_adapted(model, window, settings):
            heard.append(model.transcribe([window]).text)
    return Transcript(" ".join(filter(None, heard)))


@contextmanager
def suta_adapted(
    model: Wav2Vec2, window: Tensor, settings: Suta | None = None
) -> Iterator[tuple[float, ...]]:
    """Adapts the model to one window of float32 samples, shape (samples,), until the block ends.

    Gives the objective before each step. Raises the errors of `suta_transcribe`.
    """
    settings = settings or Suta()
    if not isinstance(model, Wav2Vec2):
        raise BaselineError(
            f"SUTA adapts the frames of a CTC model, found {type(model).__name__}: take a "
            "Wav2Vec2ForCTC checkpoint"
        )
    network = model.network
    times = suta_parameters(network)
    named = dict(network.named_parameters())
    trained = [named[name] for name in times]
    before = [parameter.detach().clone() for parameter in trained]
    # An optimiser for each number of times, stepped as often with the same gradient: what listing
    # a parameter so often came to, without relying on what an optimiser makes of duplicates.
    optimisers = {
        repeats: torch.optim.AdamW(
            [named[name] for name, listed in times.items() if listed == repeats],
            lr=settings.learning_rate,
            weight_decay=0.0,
        )
        for repeats in sorted(set(times.values()))
    }
    objectives: list[float] = []
    try:
        with _training_only(network, trained):
            inputs = model._inputs([window])
            for step in range(settings.steps):
                logits = network(**inputs).logits[0]
                objective = suta_objective(logits, model.blank, settings)
                objectives.append(_finite(objective, f"SUTA's objective at step {step + 1}"))
                torch.autograd.backward(objective)
                for repeats, optimiser in optimisers.items():
                    for _ in range(repeats if settings.repeated else 1):
                        optimiser.step()
                    optimiser.zero_grad()
        yield tuple(objectives)
    finally:
        with torch.no_grad():
            for parameter, values in zip(trained, before, strict=True):
                parameter.copy_(values)


def suta_parameters(network: nn.Module) -> dict[str, int]:
    """What SUTA trains in a Wav2Vec2ForCTC, and how often the published code lists each.

    It walks over all modules and takes a LayerNorm's own weights, and every weight *below* a
    module of the feature extractor or the feature projection: a convolution's four times, since
    it lies below four of them, the projection's twice, and its LayerNorm's three times.
    """
    times: dict[str, int] = {}
    for prefix, module in network.named_modules():
        listed = int(isinstance(module, nn.LayerNorm))
        listed += prefix.split(".")[1:2] in (["feature_extractor"], ["feature_projection"])
        for name, _ in module.named_parameters(prefix) if listed else ():
            times[name] = times.get(name, 0) + listed
    return times


def suta_objective(logits: Tensor, blank: int, settings: Suta | None = None) -> Tensor:
    """What SUTA lowers, see `uncertainty`: of frames' logits, shape (frames, classes); a scalar.

    Without a non-blank frame the published code takes the mean of nothing, NaN.
    """
    settings = settings or Suta()
    return uncertainty(
        logits, blank, temperature=settings.temperature, entropy_share=settings.entropy_share
    )


@dataclass(frozen=True)
class Lora:
    """Settings of LoRA on pseudo-labels (Hu et al. 2021; Whisper's checkpoints use the same).

    rank, alpha: added are alpha/rank · B A with B (outputs, rank) and A (rank, inputs). targets:
    last parts of the names of the linear layers that get them. passes: over the windows.
    batch: windows a step, run one by one, their gradients averaged. learning_rate: of AdamW,
    constant, no weight decay, no dropout. confident_share: of the windows, those with the most
    confident transcripts, that are trained on. seed: of A and of the order.
    Raises BaselineError on values out of range.
    """

    rank: int = 8
    alpha: float = 16
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    passes: int = 3
    batch: int = 4
    learning_rate: float = 1e-3
    confident_share: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.rank >= 1, "a rank of 1 or more", self.rank)
        _require(self.alpha > 0, "an alpha above 0", self.alpha)
        _require(bool(self.targets), "at least one target layer", self.targets)
        _require(self.passes >= 1, "1 pass or more", self.passes)
        _require(self.batch >= 1, "1 window a step or more", self.batch)
        _require(self.learning_rate > 0, "a learning rate above 0", self.learning_rate)
        _require(0 < self.confident_share <= 1, "0 < confident_share <= 1", self.confident_share)


@dataclass(frozen=True)
class LoraTraining:
    """How training went.

    losses: of each step, in nats a token of the pseudo-labels. windows: trained on. unheard: left
    out because nothing was heard in them, or an output ran to its cap. unsure: left out because
    others were more confident. parameters: trained.
    """

    losses: tuple[float, ...]
    windows: int
    unheard: int
    unsure: int
    parameters: int


@contextmanager
def lora_on_pseudo_labels(
    model: SpeechModel, windows: Sequence[Tensor], settings: Lora | None = None
) -> Iterator[LoraTraining]:
    """Trains low-rank additions on the model's own transcripts; in force until the block ends.

    windows: of the adaptation recordings, float32 samples, shape (samples,); no transcript is
    given. Each is transcribed once by the model as it is. A CTC model is then trained by the CTC
    loss of its best path, Whisper by the cross-entropy of its greedy tokens, teacher-forced; in
    evaluation mode, so without SpecAugment. On a CPU the same seed gives the same bits.
    Raises BaselineError without `peft`, for another family, for targets that are not there, where
    nothing is heard in any window, and for a loss that is not finite.
    """
    settings = settings or Lora()
    peft = _peft()
    heard = [_pseudo_label(model, window) for window in windows]
    labelled = [example for example in heard if example is not None]
    if not labelled:
        raise BaselineError(
            f"{model.source.id} hears nothing in any of {len(windows)} windows, so there is no "
            "pseudo-label to train on: give recordings of speech"
        )
    examples = _most_confident(labelled, settings.confident_share)
    network: nn.Module = model.network
    with _low_rank_additions(peft, network, settings) as added:
        with _training_only(network, added):
            losses = _train(model, added, examples, settings)
        yield LoraTraining(
            losses=losses,
            windows=len(examples),
            unheard=len(heard) - len(labelled),
            unsure=len(labelled) - len(examples),
            parameters=sum(parameter.numel() for parameter in added),
        )


@dataclass(frozen=True)
class _Example:
    """A window and what the model itself heard in it; confidence: mean log-probability."""

    window: Tensor
    labels: Tensor
    confidence: float


def _pseudo_label(model: SpeechModel, window: Tensor) -> _Example | None:
    if isinstance(model, Wav2Vec2):
        best = model.logits(window).log_softmax(-1).max(-1)
        blank = model.blank
        labels = torch.unique_consecutive(best.indices)
        labels = labels[labels != blank]
        if labels.numel() == 0:
            return None
        # Blanks are sure of themselves and many; the confidence is that of the letters.
        confidence = best.values[best.indices != blank].mean()
        return _Example(window, labels, confidence.item())
    if isinstance(model, Whisper):
        (decoded,) = model.decode([window])
        if decoded.at_cap or len(decoded.tokens) < 2:  # a loop, or an end and nothing before it
            return None
        tokens = model.prompt.new_tensor(decoded.tokens)
        return _Example(window, tokens, decoded.average_log_probability)
    raise BaselineError(
        f"LoRA on pseudo-labels knows Wav2Vec2 and Whisper, found {type(model).__name__}"
    )


def _most_confident(examples: Sequence[_Example], share: float) -> list[_Example]:
    """The share of the examples, at least one, with the highest confidence; in their old order."""
    count = math.ceil(share * len(examples))
    ranked = sorted(range(len(examples)), key=lambda n: -examples[n].confidence)
    return [examples[n] for n in sorted(ranked[:count])]


def _loss(model: SpeechModel, example: _Example) -> Tensor:
    """Negative log-likelihood of the pseudo-label, nats a token."""
    labels = example.labels
    if isinstance(model, Wav2Vec2):
        logits = model.network(**model._inputs([example.window])).logits  # (1, frames, classes)
        frames, count = (torch.tensor([n]) for n in (logits.shape[1], len(labels)))
        posteriors = logits.log_softmax(-1).transpose(0, 1)
        return nn.functional.ctc_loss(
            posteriors, labels.unsqueeze(0), frames, count, blank=model.blank, reduction="mean"
        )
    assert isinstance(model, Whisper)
    prompt = model.prompt[0]
    fed = torch.cat([prompt, labels[:-1]]).unsqueeze(0)
    features = model._features([example.window])
    logits = model.network(features, decoder_input_ids=fed, use_cache=False).logits[0]
    return nn.functional.cross_entropy(logits[len(prompt) - 1 :], labels)


def _train(
    model: SpeechModel,
    added: Sequence[nn.Parameter],
    examples: Sequence[_Example],
    settings: Lora,
) -> tuple[float, ...]:
    optimiser = torch.optim.AdamW(added, lr=settings.learning_rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(settings.seed)
    losses: list[float] = []
    for _ in range(settings.passes):
        order = torch.randperm(len(examples), generator=generator).tolist()
        for start in range(0, len(order), settings.batch):
            batch = order[start : start + settings.batch]
            mean = 0.0
            for index in batch:
                loss = _loss(model, examples[index]) / len(batch)
                mean += _finite(loss, f"the loss of LoRA at step {len(losses) + 1}")
                torch.autograd.backward(loss)
            optimiser.step()
            optimiser.zero_grad()
            losses.append(mean)
    return tuple(losses)


@contextmanager
def _low_rank_additions(
    peft: ModuleType, network: nn.Module, settings: Lora
) -> Iterator[list[nn.Parameter]]:
    """Puts untrained additions into the network and takes everything of them out in the end."""
    own = {parameter: parameter.requires_grad for parameter in network.parameters()}
    modules = {module: dict(module.named_children()) for module in network.modules()}
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=list(settings.targets),
        lora_dropout=0.0,
    )
    device = next(iter(own)).device
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(settings.seed)
            try:
                peft.inject_adapter_in_model(config, network)
            except ValueError as error:
                raise BaselineError(
                    f"LoRA fits no layers named {list(settings.targets)}: expected last parts of "
                    f"names of linear layers, such as q_proj ({error})"
                ) from error
        yield [parameter for parameter in network.parameters() if parameter not in own]
    finally:
        for module, children in modules.items():
            for name, child in children.items():
                if getattr(module, name) is not child:
                    setattr(module, name, child)
        if hasattr(network, "peft_config"):
            del network.peft_config
        for parameter, flag in own.items():
            parameter.requires_grad_(flag)


def _peft() -> ModuleType:
    try:
        import peft
    except ImportError as error:
        raise BaselineError(
            "LoRA needs the package peft, which is not installed: pip install 'fpspeech[baselines]'"
        ) from error
    return peft


@contextmanager
def _training_only(network: nn.Module, trained: Collection[nn.Parameter]) -> Iterator[None]:
    """Takes gradients of some parameters, in evaluation mode; flags and gradients are put back."""
    before = [(each, each.requires_grad, each.grad) for each in network.parameters()]
    chosen = set(trained)
    try:
        for parameter, _, _ in before:
            parameter.requires_grad_(parameter in chosen)
            parameter.grad = None
        with evaluation_mode(network), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for parameter, flag, gradient in before:
            parameter.requires_grad_(flag)
            parameter.grad = gradient


def _finite(value: Tensor, name: str) -> float:
    if not bool(torch.isfinite(value)):
        raise BaselineError(f"{name} is {value.item()}: lower the learning rate")
    return value.item()


def _require(holds: bool, expected: str, found: object) -> None:
    if not holds:
        raise BaselineError(f"expected {expected}, found {found}")
