"""What personalizing costs, beside the baselines, relative to one inference pass over the audio.

One inference pass is a transcription of the speaker's adaptation recordings. Every way runs over
the same recordings in a process of its own: operations are counted in one run, time and memory
are those of a second. Results go to standard output as a Markdown table.

"paid" says how often: once for a speaker, or at every use; SUTA adapts to what it transcribes, so
its row is the price of hearing that much audio. "nonzero" leaves out products with a pruned
weight: a dense machine carries them out all the same, as the time of the pruned model shows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from fpspeech import Config, load_speech_model
from fpspeech.adapt_head import adapt_head
from fpspeech.adaptation import pruning_for
from fpspeech.corpora import read_utterances, read_windows
from fpspeech.demo import demo_folder, demo_model
from fpspeech.evaluation.baselines import lora_on_pseudo_labels, suta_transcribe
from fpspeech.evaluation.cost import Cost, measure_cost, sparse_flops
from fpspeech.evolve_front_end import evolve_front_end
from fpspeech.models import SpeechModel
from fpspeech.models.wav2vec2 import Wav2Vec2
from fpspeech.personalize_speech import select_layers_of
from fpspeech.pruning import (
    InputStatistics,
    Observer,
    PrunedLayers,
    Selection,
    products_for,
    prune_layers,
)
from fpspeech.pruning.evolution import Evolution
from fpspeech.refit_head import DenseAnswers

Windows = Sequence[Sequence[Tensor]]
"""The consecutive windows of each recording."""


def main() -> None:
    """Prints the table for one speaker and one model, by default the demo's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="folder or Hub id; default: the demo's")
    parser.add_argument("--audio", type=Path, help="folder or manifest; default: the demo's")
    parser.add_argument("--speaker", help="default with the demo: aria")
    parser.add_argument("--seconds", type=float, default=60.0, help="of audio, at most about")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.model = options.model or str(demo_model())
    if options.audio is None:
        options.audio = demo_folder()
        options.speaker = options.speaker or "aria"
    if options.way:
        model = load_speech_model(options.model, device=options.device)
        print(json.dumps(WAYS[options.way](model, recordings(model, options))))
    else:
        for line in table(options):
            print(line, flush=True)


def table(options: argparse.Namespace) -> Iterator[str]:
    """The lines of the table."""
    model = load_speech_model(options.model, device="cpu")
    heard = recordings(model, options)
    seconds = sum(window.numel() for each in heard for window in each) / model.sampling_rate
    size = sum(parameter.numel() for parameter in model.network.parameters())
    yield (
        f"{model.source.id}, {size / 1e6:.1f} M parameters; {seconds:.0f} s of audio in "
        f"{len(heard)} recordings; {options.device}, threads: {options.threads}"
    )
    yield ""
    yield "| what | paid | operations | nonzero | time | CPU time | peak memory |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    one = measured(options, "one inference pass")
    yield (
        f"| one inference pass | every use | {one['flops'] / 1e9:.1f} GFLOP | | "
        f"{one['seconds']:.2f} s | {one['cpu_seconds']:.2f} s | {megabytes(one)} |"
    )
    for way in list(WAYS)[1:]:
        if way in (SUTA, EVOLVING, HEAD, REFIT) and not isinstance(model, Wav2Vec2):
            continue
        cost = measured(options, way)
        paid = "every use" if way in (SUTA, PERSONAL) else "once"
        nonzero = f"{cost['nonzero'] / one['flops']:.2f} x" if "nonzero" in cost else ""
        ratios = [cost[key] / one[key] for key in ("seconds", "cpu_seconds")]
        yield (
            f"| {way} | {paid} | {cost['flops'] / one['flops']:.2f} x | {nonzero} | "
            f"{ratios[0]:.2f} x | {ratios[1]:.2f} x | {megabytes(cost, one)} |"
        )


def measured(options: argparse.Namespace, way: str) -> dict[str, float]:
    """The cost of one way, in a fresh process."""
    command = [sys.executable, __file__, "--way", way, "--model", options.model]
    command += ["--audio", str(options.audio), "--seconds", str(options.seconds)]
    command += ["--device", options.device, "--threads", str(options.threads)]
    command += ["--speaker", options.speaker] if options.speaker else []
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def megabytes(cost: dict[str, float], one: dict[str, float] | None = None) -> str:
    """Peak memory in MiB, or relative to that of one pass; a dash where it cannot be told."""
    if cost["peak_bytes"] is None or (one is not None and one["peak_bytes"] is None):
        return "-"
    if one is not None:
        return f"{cost['peak_bytes'] / one['peak_bytes']:.2f} x"
    return f"{cost['peak_bytes'] / 2**20:.0f} MiB"


def recordings(model: SpeechModel, options: argparse.Namespace) -> Windows:
    """The speaker's adaptation recordings, whole, until there are so many seconds of them."""
    found = read_utterances(options.audio, with_text=False, speaker=options.speaker)
    if len(names := sorted({utterance.speaker for utterance in found})) > 1:
        raise SystemExit(f"{options.audio} holds {len(names)} speakers: choose one by --speaker")
    heard: list[list[Tensor]] = []
    seconds = 0.0
    for utterance in found:
        if utterance.split == "test" or seconds >= options.seconds:
            continue
        windows = read_windows(
            utterance.audio,
            sampling_rate=model.sampling_rate,
            window_seconds=model.window_seconds,
        )
        heard.append(list(windows))
        seconds += sum(window.numel() for window in heard[-1]) / model.sampling_rate
    return heard


def inference(model: SpeechModel, heard: Windows) -> dict[str, float | None]:
    """Transcribes every recording once."""
    return measure(model, lambda: transcribe(model, heard))


def listening(
    model: SpeechModel, heard: Windows, *, products: bool = True
) -> dict[str, float | None]:
    """Streams every window by and counts what the layers take in."""
    return measure(model, lambda: statistics_of(model, heard, products=products))


def pruning(model: SpeechModel, heard: Windows) -> dict[str, float | None]:
    """Scores, masks and the update, from statistics that are there."""
    statistics = statistics_of(model, heard)
    return measure(model, lambda: pruned(model, statistics))


def personal(model: SpeechModel, heard: Windows) -> dict[str, float | None]:
    """Transcribes every recording once with the pruned model."""
    selection, result = pruned(model, statistics_of(model, heard))
    layers, masks = selection.layers, result.masks
    with result.apply(layers, model.network):
        counted = sparse_flops(lambda: transcribe(model, heard), layers, masks)
        return measure(model, lambda: transcribe(model, heard)) | {"nonzero": counted.nonzero}


def suta(model: SpeechModel, heard: Windows) -> dict[str, float | None]:
    """Transcribes every recording once, adapting to each window."""
    assert isinstance(model, Wav2Vec2)
    return measure(model, lambda: [suta_transcribe(model, windows) for windows in heard])


def evolving(model: SpeechModel, heard: Windows) -> dict[str, float | None]:
    """One step of evolving the front end, and confirming it, on these recordings."""
    windows = [window for each in heard for window in each]
    return measure(model, lambda: evolve_front_end(model, windows, Evolution(steps=1)))


def head(model: SpeechModel, heard: Windows) -> dict[str, float | None]:
    """Fits the output layer to these recordings: to one half and, where confirmed, to all."""
    windows = [window for each in heard for window in each]
    return measure(model, lambda: adapt_head(model, windows))


def refit(model: SpeechModel, heard: Windows) -> dict[str, float | None]:
    """Asks the dense model what it says of these recordings, and refits the output layer to it."""
    windows = [window for each in heard for window in each]
    return measure(model, lambda: DenseAnswers(model, windows).refit_head())


def lora(model: SpeechModel, heard: Windows) -> dict[str, float | None]:
    """Transcribes every window once and trains on that."""

    def run() -> None:
        with lora_on_pseudo_labels(model, [window for windows in heard for window in windows]):
            pass

    return measure(model, run)


def transcribe(model: SpeechModel, heard: Windows) -> None:
    """One pass, nothing kept."""
    for windows in heard:
        model.transcribe(windows)


def statistics_of(
    model: SpeechModel, heard: Windows, *, products: bool = True
) -> dict[str, InputStatistics]:
    """What the default pruning needs, or the sums alone."""
    config = Config()
    layers = select_layers_of(model, config).layers
    wanted = products_for(layers, config.pruning) if products else frozenset[str]()
    observer = Observer(layers, wanted, config.pruning.product_stride)
    for windows in heard:
        for window in windows:
            model.observe([window], observer)
    return observer.statistics()


def pruned(
    model: SpeechModel, statistics: dict[str, InputStatistics]
) -> tuple[Selection, PrunedLayers]:
    """The default pruning from these statistics."""
    selection = select_layers_of(model, Config())
    return selection, prune_layers(selection.layers, statistics, pruning_for(model, Config()))


def measure(model: SpeechModel, run: Callable[[], object]) -> dict[str, float | None]:
    """The cost of a run as plain numbers."""
    cost: Cost = measure_cost(run, next(model.network.parameters()).device)
    return asdict(cost)


SUTA = "SUTA"
EVOLVING = f"evolving the front end, one of {Evolution().steps} steps"
HEAD = "fitting the output layer"
REFIT = "refitting it behind pruned layers"
PERSONAL = "inference, pruned"
WAYS: dict[str, Callable[[SpeechModel, Windows], dict[str, float | None]]] = {
    "one inference pass": inference,
    "listening, sums": lambda model, heard: listening(model, heard, products=False),
    "listening, sums and products": listening,
    "pruning and update": pruning,
    PERSONAL: personal,
    EVOLVING: evolving,
    HEAD: head,
    REFIT: refit,
    "LoRA on pseudo-labels": lora,
    SUTA: suta,
}


if __name__ == "__main__":
    main()
