"""What observing statistics costs beside plain inference, over the same audio, in one run.

Time: the ways in turn in one process; the ratio to plain of every round, its median.
Memory: one process for each way; the ratio of their peaks (resident set, loaded model included).
Results go to standard output as a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
)

from fpspeech import Config, load_speech_model
from fpspeech.demo import demo_model
from fpspeech.models import SpeechModel
from fpspeech.personalize_speech import select_layers_of
from fpspeech.pruning import Observer, PruningConfig, products_for

RATE = 16_000


WAYS = ("plain", "sums", "sums and products")


def main() -> None:
    """Measures the demo's model and an untrained one of the size of wav2vec2-base."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="folder or Hub id; default: the demo's and a base size")
    parser.add_argument("--window-seconds", type=float, default=10.0)
    parser.add_argument("--windows", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--peak-of", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak_of:
        passes(load_speech_model(options.model, device="cpu"), options)[options.peak_of]()
        print(peak_of_this_process())
        return
    print("| model | parameters | what is counted | time | ratio | peak memory | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        models = [options.model] if options.model else [demo_model(), base_size(Path(folder))]
        for model in models:
            options.model = str(model)
            print("\n".join(rows(options)), flush=True)


def rows(options: argparse.Namespace) -> Iterator[str]:
    """The lines of the table for the model named in `options`."""
    model = load_speech_model(options.model, device="cpu")
    runs = passes(model, options)
    for run in runs.values():
        run()  # warm
    rounds = [{way: seconds(run) for way, run in runs.items()} for _ in range(options.rounds)]
    peaks = {way: peak(options, way) for way in WAYS}
    size = sum(parameter.numel() for parameter in model.network.parameters())
    for way in WAYS:
        ratio = statistics.median(each[way] / each["plain"] for each in rounds)
        took = statistics.median(each[way] for each in rounds)
        yield (
            f"| {model.source.id} | {size / 1e6:.1f} M | {'-' if way == 'plain' else way} "
            f"| {took:.2f} s | {ratio:.2f} | {peaks[way] / 1024:.0f} MiB "
            f"| {peaks[way] / peaks['plain']:.2f} |"
        )


def passes(model: SpeechModel, options: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """The ways to run the model over the same windows of noise."""
    generator = torch.Generator().manual_seed(0)
    samples = round(options.window_seconds * RATE)
    windows = [0.1 * torch.randn(samples, generator=generator) for _ in range(options.windows)]
    layers = select_layers_of(model, Config()).layers
    pruning = PruningConfig()

    def run(make_observer: Callable[[], Observer]) -> None:
        observer = make_observer()
        for window in windows:
            model.observe([window], observer)
        observer.statistics()

    # Plain inference takes the very same code path, with no layer to count.
    observers = {
        "plain": lambda: Observer(()),
        "sums": lambda: Observer(layers),
        "sums and products": lambda: Observer(
            layers, products_for(layers, pruning), pruning.product_stride
        ),
    }
    return {way: partial(run, observer) for way, observer in observers.items()}


def seconds(run: Callable[[], None]) -> float:
    """Wall seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def peak(options: argparse.Namespace, way: str) -> int:
    """Peak resident set, in KiB, of a fresh process that makes one pass."""
    command = [sys.executable, __file__, "--peak-of", way, "--model", options.model]
    command += ["--window-seconds", str(options.window_seconds)]
    command += ["--windows", str(options.windows), "--threads", str(options.threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.splitlines()[-1])


def peak_of_this_process() -> int:
    """Peak resident set in KiB; Linux's ru_maxrss would include the parent's up to the exec."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def base_size(folder: Path) -> Path:
    """An untrained Wav2Vec2ForCTC with the layers of facebook/wav2vec2-base-960h, and that name."""
    folder = folder / "wav2vec2-base (untrained)"
    folder.mkdir()
    torch.manual_seed(0)
    Wav2Vec2ForCTC(Wav2Vec2Config()).save_pretrained(folder)
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4}))
    Wav2Vec2Processor(
        Wav2Vec2FeatureExtractor(return_attention_mask=False),
        Wav2Vec2CTCTokenizer(str(vocabulary)),
    ).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
