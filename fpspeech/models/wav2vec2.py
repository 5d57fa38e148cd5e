"""Wav2Vec2 with a CTC head: `facebook/wav2vec2-base-960h`, `-large-960h-lv60-self` and the like."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Wav2Vec2ForCTC, Wav2Vec2Processor

from fpspeech.models.source import ModelError, Source
from fpspeech.models.speech_model import Counter, Hypothesis, Transcript
from fpspeech.pruning import Replay, Site
from fpspeech.pruning.gains import Gain
from fpspeech.pruning.own_words import Spelling
from fpspeech.pruning.uncertainty import uncertainty

_FRONT = "wav2vec2.feature_extractor.conv_layers"


class Wav2Vec2:
    """A `Wav2Vec2ForCTC` checkpoint and its processor.

    Checkpoints whose feature extractor has a group norm take neither padding nor an attention
    mask (the norm spans the whole recording), so their recordings run one at a time; those with
    layer norms may run in padded batches under an attention mask.
    """

    family = "wav2vec2"
    window_seconds = 30.0

    def __init__(self, source: Source, network: Wav2Vec2ForCTC, processor: Wav2Vec2Processor):
        self.source = source
        self.network = network
        self.network.train(False)
        self.processor = processor
        self.sampling_rate = int(processor.feature_extractor.sampling_rate)

    @classmethod
    def load(
        cls, source: Source, device: torch.device | str = "cpu", language: str = "en"
    ) -> Wav2Vec2:
        """Loads the checkpoint in float32; raises ModelError when it is no CTC recogniser.

        language: without effect, a CTC checkpoint knows one.
        """
        loaded: Any = Wav2Vec2ForCTC.from_pretrained(
            source.folder, dtype=torch.float32, output_loading_info=True
        )
        network, info = loaded
        missing = [key for key in info["missing_keys"] if "masked_spec_embed" not in key]
        if missing:
            raise ModelError(
                f"{source.id} lacks weights of a Wav2Vec2ForCTC ({', '.join(sorted(missing)[:3])}"
                f"{', ...' if len(missing) > 3 else ''}): expected a checkpoint fine-tuned for "
                "recognition, such as facebook/wav2vec2-base-960h"
            )
        try:
            processor = Wav2Vec2Processor.from_pretrained(source.folder)
        except (OSError, ValueError, TypeError) as error:
            raise ModelError(
                f"{source.id} has no processor that loads ({error}): expected "
                "preprocessor_config.json, tokenizer_config.json and vocab.json beside the weights"
            ) from error
        return cls(source, network.to(device), processor)

    @property
    def blank(self) -> int:
        """The symbol of CTC that writes nothing."""
        return int(self.processor.tokenizer.pad_token_id)

    @property
    def spelling(self) -> Spelling:
        """The symbols that are no letters."""
        return Spelling(self.blank, self.processor.tokenizer.word_delimiter_token_id)

    @property
    def head(self) -> str:
        """The output layer."""
        return "lm_head"

    @property
    def exclusions(self) -> Mapping[str, str]:
        """The first convolution, which reads ten samples an output, and the output layer."""
        return {
            f"{_FRONT}.0.conv": "first convolution: few inputs an output, all of them needed",
            "lm_head": "output layer",
        }

    def observe(self, windows: Sequence[Tensor], observer: Counter) -> None:
        """Runs windows of float32 samples through the model, each counted once.

        In one padded batch where the checkpoint takes an attention mask, else one at a time.
        """
        for replay in self.replays(windows):
            with torch.inference_mode(), observer.counting(replay.valid):
                replay.run()

    def remember(self, windows: Sequence[Tensor]) -> None:
        """Nothing: a pass depends on the windows alone."""

    def replays(self, windows: Sequence[Tensor], remembered: object = None) -> list[Replay]:
        """The passes that `observe` counts, one for all windows or one for each."""
        together = self._takes_mask and not self.network.config.add_adapter
        batches = [list(windows)] if together else [[window] for window in windows]
        return [
            Replay(partial(self._run, self._inputs(batch)), self._valid_positions(batch))
            for batch in batches
        ]

    @property
    def components(self) -> Mapping[str, tuple[str, ...]]:
        """Parts of the model that can be given a sparsity of their own."""
        return {
            "features": ("wav2vec2.feature_extractor.*", "wav2vec2.feature_projection.*"),
            "encoder.pos_conv": ("wav2vec2.encoder.pos_conv_embed.conv",),
            "encoder.self_attn": ("wav2vec2.encoder.layers.*.attention.*",),
            "encoder.ffn": ("wav2vec2.encoder.layers.*.feed_forward.*",),
        }

    def reads_tokens(self, layer: str) -> bool:
        """None does: all of CTC is frames."""
        return False

    @property
    def sites(self) -> Mapping[str, tuple[Site, ...]]:
        """Behind the convolutions, and the layer norms of the first half of the layers.

        The norm behind the convolutions, its projection, then each layer's two norms. With pre-norm
        ("stable layer norm") these are what attention and feed-forward read; else the residual
        stream itself.
        """
        layers = len(self.network.wav2vec2.encoder.layers)
        front = "wav2vec2.feature_projection"
        found: dict[str, tuple[Site, ...]] = {
            "features": (Site(f"{front}.layer_norm", (f"{front}.projection",)),),
            "projection": (Site(f"{front}.projection"),),
        }
        stable = self.network.config.do_stable_layer_norm
        for number in range((layers + 1) // 2):
            layer = f"wav2vec2.encoder.layers.{number}"
            attention = tuple(f"{layer}.attention.{each}_proj" for each in "qkv")
            feed_forward = (f"{layer}.feed_forward.intermediate_dense",)
            found[f"layer{number}"] = (
                Site(f"{layer}.layer_norm", attention if stable else ()),
                Site(f"{layer}.final_layer_norm", feed_forward if stable else ()),
            )
        return found

    @property
    def gains(self) -> tuple[Gain, ...]:
        """The channels of the convolutions, by their rows or else by the norm behind them.

        A gain of a row in front of a norm of its own channel is none; where every convolution has
        a layer norm behind it, the rows weigh its channels against each other. Shifts are left
        out: at the units of `Gain` they hardly move what a model is sure of, and are noise to a
        search without derivatives.
        """
        layers = self.network.wav2vec2.feature_extractor.conv_layers
        found = []
        for number, layer in enumerate(layers):
            norm = getattr(layer, "layer_norm", None)
            if not isinstance(norm, nn.GroupNorm):
                found.append(Gain(f"{_FRONT}.{number}.conv.weight", rows=True))
            if norm is not None:
                found.append(Gain(f"{_FRONT}.{number}.layer_norm.weight"))
        found.append(Gain("wav2vec2.feature_projection.layer_norm.weight"))
        return tuple(found)

    def listen(self, windows: Sequence[Tensor], counter: Counter) -> None:
        """The same as `observe`: CTC writes where it hears."""
        self.observe(windows, counter)

    def hypothesis(self, window: Tensor, along: Sequence[int] | None = None) -> Hypothesis:
        """The best path of one window; its posteriors need no tokens to go along."""
        posteriors = self.log_posteriors([window])[0]  # (frames, vocabulary)
        best = posteriors.max(-1)
        informative = best.indices.ne(self.blank)
        entropy = -(posteriors.exp() * posteriors).sum(-1)
        return Hypothesis(
            text=self._decode(posteriors),
            tokens=tuple(best.indices.tolist()),
            log_probability=float(best.values.sum()),
            entropy=float(entropy[informative].sum()),
            informative=int(informative.sum()),
            log_posteriors=posteriors,
            # The formula starts with a softmax, which does not tell logits from their normalised.
            uncertainty=float(uncertainty(posteriors, self.blank)),
        )

    def transcribe(self, windows: Iterable[Tensor]) -> Transcript:
        """Best-path CTC text of the consecutive windows of one recording."""
        heard = (self._decode(self.logits(window)) for window in windows)
        return Transcript(" ".join(filter(None, heard)))

    def transcribe_all(self, recordings: Iterable[Iterable[Tensor]]) -> Iterator[Transcript]:
        """Texts of recordings, each its consecutive windows, one after the other."""
        return map(self.transcribe, recordings)

    def logits(self, window: Tensor) -> Tensor:
        """CTC logits of one window of float32 samples, shape (frames, vocabulary)."""
        return self.logits_together([window])[0]

    def log_posteriors(self, windows: Sequence[Tensor]) -> Tensor:
        """Those of CTC for windows of one length, shape (windows, frames, vocabulary)."""
        return self.logits_together(windows).log_softmax(-1)

    def logits_together(self, windows: Sequence[Tensor]) -> Tensor:
        """CTC logits of windows of one length, shape (windows, frames, vocabulary)."""
        with torch.inference_mode():
            logits: Tensor = self.network(**self._inputs(windows)).logits
        return logits

    def save_pretrained(self, folder: Path) -> None:
        """Writes a stock folder that `Wav2Vec2ForCTC.from_pretrained` loads."""
        self.network.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    @property
    def _takes_mask(self) -> bool:
        return bool(self.processor.feature_extractor.return_attention_mask)

    def _run(self, inputs: Mapping[str, Tensor]) -> object:
        return self.network(**inputs)

    def _inputs(self, windows: Sequence[Tensor]) -> dict[str, Tensor]:
        inputs = self.processor.feature_extractor(
            [window.numpy() for window in windows],
            sampling_rate=self.sampling_rate,
            padding=True,
            return_tensors="pt",
        )
        return dict(inputs.to(self.network.device))

    def _decode(self, logits: Tensor) -> str:
        return str(self.processor.tokenizer.decode(logits.argmax(-1).cpu()))

    def _valid_positions(self, windows: Sequence[Tensor]) -> Callable[[str], list[int] | None]:
        """Positions of each layer that hold a window's own audio, not the batch's padding."""
        config = self.network.config
        lengths = [window.numel() for window in windows]
        front: dict[str, list[int]] = {}
        for index, (kernel, stride) in enumerate(
            zip(config.conv_kernel, config.conv_stride, strict=True)
        ):
            lengths = [(length - kernel) // stride + 1 for length in lengths]
            front[f"{_FRONT}.{index}.conv"] = lengths

        def valid(name: str) -> list[int] | None:
            if name in front:
                return front[name]
            if config.add_adapter and not name.startswith(("wav2vec2.enc", "wav2vec2.feature")):
                return None  # behind the adapter's strides; such checkpoints run unpadded
            # Behind the positional convolution one surplus output is dropped; frames say so.
            return lengths

        return valid
