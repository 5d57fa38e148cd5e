"""Supervised training of a small Wav2Vec2ForCTC on a CPU: seeded, resumable, augmented.

Backpropagation lives here and not in the package: a base model has to come from somewhere,
personalizing it needs none.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import jiwer
import numpy as np
import torch
import torchaudio.transforms
from transformers import Wav2Vec2ForCTC

from recipes.audio_store import SAMPLE_RATE, AudioStore
from recipes.base_model import encode, normalize, save_base_model, transcribe
from recipes.rooms import random_room, record

SPEEDS = (85, 90, 95, 100, 105, 110, 115)  # per cent; above 100 is faster and higher
LENGTH_STEP = 3200  # samples; batches are padded with silence to a multiple
LABEL_PADDING = -100  # what Wav2Vec2ForCTC leaves out of the loss
# Without these instructions bfloat16 is emulated, many times slower than float32.
HAS_BFLOAT16 = torch.cpu._is_avx512_bf16_supported()


@dataclass(frozen=True)
class Training:
    """How to train. `batch_seconds` counts audio before augmentation."""

    steps: int
    batch_seconds: float = 64.0
    peak_learning_rate: float = 1e-3
    warmup_steps: int = 400
    weight_decay: float = 0.01
    gradient_norm: float = 1.0
    longest_padding: float = 0.6  # seconds of silence before and after, together
    seed: int = 0
    check_every: int = 250


def train(
    model: Wav2Vec2ForCTC, store: AudioStore, validation: AudioStore, options: Training, exp: Path
) -> float:
    """Train `model` in place, from `exp/checkpoint.pt` where there is one.

    At every check the state is saved, `exp/latest` gets a Hugging Face folder, and the
    validation word error rate is printed. Returns the last one.
    """
    exp.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=options.weight_decay
    )
    checkpoint_path = exp / "checkpoint.pt"
    first_step, seconds_before, audio_seconds = 0, 0.0, 0.0
    if checkpoint_path.exists():
        checkpoint = torch.load(checkpoint_path, weights_only=True)
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        first_step, seconds_before = checkpoint["step"], checkpoint["seconds"]
        audio_seconds = checkpoint["audio_seconds"]
        print(f"resumed at step {first_step}", flush=True)

    resamplers = {
        speed: torchaudio.transforms.Resample(speed * 160, SAMPLE_RATE) for speed in SPEEDS
    }
    started = time.perf_counter()
    error_rate, losses = math.nan, []
    batches = islice(enumerate(_batches(store, options)), first_step, options.steps)
    for step, indices in batches:
        # Every draw of a step follows from its number, so a resumed run repeats an unbroken one.
        generator = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
        torch.manual_seed(options.seed * 1_000_003 + step)
        np.random.seed((options.seed * 1_000_003 + step) % 2**32)  # transformers masks with numpy
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options)

        signals, labels = _augmented_batch(store, indices, resamplers, options, generator)
        model.train()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=HAS_BFLOAT16):
            loss = model(signals, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.gradient_norm)
        optimizer.step()
        optimizer.zero_grad()

        losses.append(loss.item())
        audio_seconds += signals.numel() / SAMPLE_RATE
        done = step + 1
        if done % 50 == 0 or done == options.steps:
            seconds = seconds_before + time.perf_counter() - started
            print(
                f"step {done}/{options.steps} loss {np.mean(losses[-50:]):.3f} "
                f"audio {audio_seconds:.0f} s in {seconds:.0f} s",
                flush=True,
            )
        if done % options.check_every == 0 or done == options.steps:
            error_rate = word_error_rate(model, validation)
            print(f"step {done} validation WER {error_rate:.3f}", flush=True)
            save_base_model(model, exp / "latest")
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": done,
                "seconds": seconds_before + time.perf_counter() - started,
                "audio_seconds": audio_seconds,
            }
            torch.save(state, checkpoint_path.with_suffix(".partial"))
            checkpoint_path.with_suffix(".partial").replace(checkpoint_path)
    return error_rate


def learning_rate(step: int, options: Training) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    if step < options.warmup_steps:
        return options.peak_learning_rate * (step + 1) / options.warmup_steps
    progress = (step - options.warmup_steps) / max(1, options.steps - options.warmup_steps)
    return options.peak_learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def word_error_rate(model: Wav2Vec2ForCTC, store: AudioStore) -> float:
    """Corpus WER, each recording alone: zero padding in a batch would change group norm."""
    model.eval()
    pairs = [(text, transcribe(model, signal)) for text, signal in store]
    return jiwer.wer([text for text, _ in pairs], [heard for _, heard in pairs])


def _batches(store: AudioStore, options: Training) -> Iterator[list[int]]:
    """Endless batches of utterances of nearly equal length, in random order."""
    lengths = np.array([utterance.n_samples for utterance in store.utterances])
    epoch = 0
    while True:
        random = np.random.default_rng([options.seed, epoch])
        order = np.argsort(lengths * random.uniform(0.97, 1.03, len(lengths)))
        buckets: list[list[int]] = [[]]
        for index in order.tolist():
            longest = max((lengths[other] for other in buckets[-1]), default=0)
            total = max(longest, lengths[index]) * (len(buckets[-1]) + 1)
            if buckets[-1] and total > options.batch_seconds * SAMPLE_RATE:
                buckets.append([])
            buckets[-1].append(index)
        for position in random.permutation(len(buckets)):
            yield buckets[position]
        epoch += 1


def _augmented_batch(
    store: AudioStore,
    indices: list[int],
    resamplers: dict[int, torchaudio.transforms.Resample],
    options: Training,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Signals (n_batch, n_samples), each in a random room, and labels (n_batch, n_symbols)."""
    speech = [store.signal(index) for index in indices]
    longest = max(len(signal) for signal in speech)
    padding = torch.rand(2, generator=generator) * options.longest_padding * SAMPLE_RATE
    batch = torch.zeros(len(speech), longest + int(padding[0]))
    for row, signal in zip(batch, speech, strict=True):
        # Each somewhere else, so silence before the words is as usual as silence after them.
        spare = len(row) - len(signal)
        start = int(torch.rand((), generator=generator) * (spare + 1))
        row[start : start + len(signal)] = signal
    speed = SPEEDS[int(torch.randint(len(SPEEDS), (), generator=generator))]
    batch = resamplers[speed](batch)
    # Few different lengths: the CPU kernels are compiled anew, and kept, for each.
    batch = torch.nn.functional.pad(batch, (0, -batch.shape[1] % LENGTH_STEP))
    rooms = [random_room(generator) for _ in indices]
    signals = normalize(record(batch, rooms, generator))
    labels = [torch.tensor(encode(store.utterances[index].text)) for index in indices]
    return signals, torch.nn.utils.rnn.pad_sequence(
        labels, batch_first=True, padding_value=LABEL_PADDING
    )
