"""Whisper: `openai/whisper-tiny` to `-large-v3`, English-only or multilingual, `distil-whisper`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, WhisperFeatureExtractor, WhisperForConditionalGeneration
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from fpspeech.models.source import ModelError, Source
from fpspeech.models.speech_model import Counter, Hypothesis, Transcript
from fpspeech.pruning import Replay, Site

MAX_NEW_TOKENS = 224
"""Tokens a window's output may have: half the text context of 448, as in openai/whisper."""

ENGLISH_TOKENS_PER_SECOND = 10.0
"""Tokens that English may have a second of a window, beside `ENGLISH_TOKENS` at least.

Fast speech has some seven. A model that is stuck in a loop stops there and not at 224; Moonshine
(arXiv 2410.15608) is run with six for the same reason.
"""

ENGLISH_TOKENS = 10

BATCH = 16
"""Windows that are transcribed together."""

_MULTILINGUAL_VOCABULARY = 51_865  # tokens; the English-only checkpoints have fewer
_TIMESTAMP = re.compile(r"<\|\d+\.\d+\|>")


@dataclass(frozen=True)
class Decoded:
    """What the decoder wrote for one window.

    tokens: the new ones, without the prompt; the last ends the text unless `at_cap`.
    log_probability: the sum of their natural logarithms, suppressed tokens left out of the softmax.
    entropy: of those softmaxes, summed over the tokens, in nats. at_cap: the output was cut at the
    cap on new tokens.
    """

    tokens: tuple[int, ...]
    log_probability: float
    entropy: float
    at_cap: bool

    @property
    def average_log_probability(self) -> float:
        """Log-probability per token, the end token included: a label-free sign of quality."""
        return self.log_probability / len(self.tokens)


class Whisper:
    """A `WhisperForConditionalGeneration` checkpoint, its feature extractor and its tokenizer.

    It decodes greedily at temperature 0, without fallback and without timestamps, in one language
    and for the task "transcribe": what a pruned model does wrong is seen, not sampled away. The
    loop is its own, since transformers' `generate` runs for ever on a model damaged enough to
    write timestamps unasked (it waits for them to move its window); elsewhere both agree.
    prompt: the tokens every output starts from, shape (1, tokens). An output has no more tokens
    than `most_tokens`.
    """

    family = "whisper"

    def __init__(
        self,
        source: Source,
        network: WhisperForConditionalGeneration,
        feature_extractor: WhisperFeatureExtractor,
        tokenizer: Any,
        language: str = "en",
    ):
        self.source = source
        self.network = network
        self.network.train(False)
        self.feature_extractor = feature_extractor
        self.tokenizer = tokenizer
        self.sampling_rate = int(feature_extractor.sampling_rate)
        self.window_seconds = feature_extractor.n_samples / self.sampling_rate  # 30 s
        prompt = _prompt(source, network, tokenizer, language)
        self.prompt = torch.tensor([prompt], device=network.device)
        longest = int(network.config.max_target_positions) - len(prompt)
        self.max_new_tokens = min(MAX_NEW_TOKENS, longest)
        self.english = _code(language) == "en"

    @classmethod
    def load(
        cls, source: Source, device: torch.device | str = "cpu", language: str = "en"
    ) -> Whisper:
        """Loads the checkpoint in float32.

        language: a code or an English name ("de", "german"). Raises ModelError when the checkpoint
        is no Whisper recogniser, its processor does not fit, or it does not know the language.
        """
        loaded: Any = WhisperForConditionalGeneration.from_pretrained(
            source.folder, dtype=torch.float32, output_loading_info=True
        )
        network, info = loaded
        if missing := sorted(info["missing_keys"]):
            raise ModelError(
                f"{source.id} lacks weights of a WhisperForConditionalGeneration "
                f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}): expected a "
                "checkpoint for recognition, such as openai/whisper-tiny"
            )
        try:
            feature_extractor = WhisperFeatureExtractor.from_pretrained(source.folder)
            tokenizer = AutoTokenizer.from_pretrained(source.folder)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ModelError(
                f"{source.id} has no processor that loads ({error}): expected "
                "preprocessor_config.json, tokenizer.json and tokenizer_config.json beside the "
                "weights"
            ) from error
        _check_processor(source, network, feature_extractor, tokenizer)
        return cls(source, network.to(device), feature_extractor, tokenizer, language)

    @property
    def exclusions(self) -> Mapping[str, str]:
        """The first convolution, and the output layer that is also the token embedding."""
        return {
            "model.encoder.conv1": "first convolution: few inputs an output, all of them needed",
            "proj_out": "output layer, one matrix with the token embedding",
        }

    @property
    def gains(self) -> tuple[()]:
        """None: how sure the decoder is of its text did not tell better front ends from worse."""
        return ()

    @property
    def spelling(self) -> None:
        """None: it is no CTC model."""
        return None

    @property
    def head(self) -> None:
        """None: its output layer is the embedding of its tokens too."""
        return None

    def log_posteriors(self, windows: Sequence[Tensor]) -> Tensor:
        """Raises ModelError: its posteriors go along tokens, not along frames."""
        raise ModelError(f"{self.source.id}: a Whisper has no posteriors of frames")

    def observe(self, windows: Sequence[Tensor], observer: Counter) -> None:
        """Counts windows of float32 samples, shape (samples,), in one batch, each once.

        The model transcribes with nothing attached; then one teacher-forced pass over the tokens
        that it fed itself is counted, so the decoder sees what it sees in use: the prompt and
        every new token but the last, which is fed to nothing. Out of the count stay the encoder
        frames of the padding to 30 seconds and the padding of shorter outputs.

        The keys and values of cross-attention are counted once a frame. Every decoder position
        reads them, but its attention spreads a weight of one over all frames, so in effect a frame
        is used (positions / frames) times; that is the speaking rate, about the same everywhere,
        and no factor common to a layer changes its mask. Counting a frame anew for every position
        would instead weigh a window by the square of its length.

        Raises ModelError when a window is longer than `window_seconds`.
        """
        for replay in self.replays(windows):
            with torch.inference_mode(), observer.counting(replay.valid):
                replay.run()

    def remember(self, windows: Sequence[Tensor]) -> list[Tensor]:
        """The tokens that the model feeds itself for each window, shape (positions,)."""
        return [self._fed(decoded) for decoded in self.decode(windows)]

    def replays(self, windows: Sequence[Tensor], remembered: object = None) -> list[Replay]:
        """The one pass that `observe` counts, teacher-forced on what `remember` gave.

        So a pruned model reads what the dense one wrote, and both see the same positions.
        """
        known = self.remember(windows) if remembered is None else remembered
        fed = cast(list[Tensor], known)
        tokens = pad_sequence(fed, batch_first=True)  # (B, positions); causal: padding is unseen
        valid = self._valid_positions(windows, [len(sequence) for sequence in fed])
        return [Replay(partial(self._run, self._features(windows), tokens), valid)]

    @property
    def components(self) -> Mapping[str, tuple[str, ...]]:
        """Parts of the model that can be given a sparsity of their own."""
        return {
            "encoder.conv": ("model.encoder.conv?",),
            "encoder.self_attn": ("model.encoder.layers.*.self_attn.*",),
            "encoder.ffn": ("model.encoder.layers.*.fc?",),
            "decoder.self_attn": ("model.decoder.layers.*.self_attn.*",),
            "decoder.cross_attn": ("model.decoder.layers.*.encoder_attn.*",),
            "decoder.ffn": ("model.decoder.layers.*.fc?",),
        }

    def reads_tokens(self, layer: str) -> bool:
        """The decoder does, but for what cross-attention reads of the encoder."""
        frames = layer.endswith(("encoder_attn.k_proj", "encoder_attn.v_proj"))
        return layer.startswith("model.decoder.") and not frames

    @property
    def sites(self) -> Mapping[str, tuple[Site, ...]]:
        """The two convolutions, and the layer norms of the first half of the encoder's layers."""
        found: dict[str, tuple[Site, ...]] = {
            "conv1": (Site("model.encoder.conv1"),),
            "conv2": (Site("model.encoder.conv2"),),
        }
        for number in range((len(self.network.model.encoder.layers) + 1) // 2):
            layer = f"model.encoder.layers.{number}"
            attention = tuple(f"{layer}.self_attn.{each}_proj" for each in "qkv")
            found[f"layer{number}"] = (
                Site(f"{layer}.self_attn_layer_norm", attention),
                Site(f"{layer}.final_layer_norm", (f"{layer}.fc1",)),
            )
        return found

    def listen(self, windows: Sequence[Tensor], counter: Counter) -> None:
        """Runs windows of float32 samples through the encoder while `counter` counts, each once."""
        valid = self._valid_positions(windows, [0] * len(windows))
        with torch.inference_mode(), counter.counting(valid):
            self._encoded(windows)

    def transcribe(self, windows: Iterable[Tensor]) -> Transcript:
        """Greedy text of the consecutive windows of one recording, a batch in memory at a time.

        Raises ModelError when a window is longer than `window_seconds`.
        """
        return next(self.transcribe_all([windows]))

    def transcribe_all(self, recordings: Iterable[Iterable[Tensor]]) -> Iterator[Transcript]:
        """Greedy texts of recordings, each its consecutive windows; see `transcribe`.

        Windows of several recordings are decoded together: all are padded to 30 seconds anyway,
        and a step of the decoder takes hardly longer for many.
        """
        batch: list[tuple[int, Tensor]] = []  # window, and the number of its recording
        begun = finished = 0
        heard: dict[int, list[Decoded]] = {}

        def decode() -> None:
            decoded = self.decode([window for _, window in batch])
            for (number, _), each in zip(batch, decoded, strict=True):
                heard[number].append(each)
            batch.clear()

        for windows in recordings:
            heard[begun] = []
            for window in windows:
                batch.append((begun, window))
                if len(batch) == BATCH:
                    decode()
                    # The recording that is being read may have windows to come.
                    for number in range(finished, begun):
                        yield self._transcript(heard.pop(number))
                    finished = begun
            begun += 1
        if batch:
            decode()
        for number in range(finished, begun):
            yield self._transcript(heard.pop(number))

    def _transcript(self, decoded: Sequence[Decoded]) -> Transcript:
        texts = [self._text(each) for each in decoded]
        return Transcript(" ".join(filter(None, texts)), sum(each.at_cap for each in decoded))

    def most_tokens(self, window: Tensor) -> int:
        """Tokens the output may have for a window of samples, shape (samples,), the end included.

        English: `ENGLISH_TOKENS` and `ENGLISH_TOKENS_PER_SECOND`, `max_new_tokens` at most. Other
        languages: `max_new_tokens`, since some scripts take several tokens a letter.
        """
        if not self.english:
            return self.max_new_tokens
        seconds = window.numel() / self.sampling_rate
        spoken = ENGLISH_TOKENS + math.ceil(ENGLISH_TOKENS_PER_SECOND * seconds)
        return min(self.max_new_tokens, spoken)

    @torch.inference_mode()
    def decode(self, windows: Sequence[Tensor]) -> list[Decoded]:
        """Greedy outputs for windows of float32 samples, shape (samples,), in one batch.

        Raises ModelError when a window is longer than `window_seconds`.
        """
        return self._decoded(self._encoded(windows), [self.most_tokens(each) for each in windows])

    @torch.inference_mode()
    def hypothesis(self, window: Tensor, along: Sequence[int] | None = None) -> Hypothesis:
        """What it writes for one window of float32 samples, and the posteriors along `along`.

        The window is encoded once; along: tokens as in `Decoded`, which are fed to the decoder
        instead of its own. Raises ModelError when the window is longer than `window_seconds`.
        """
        encoded = self._encoded([window])
        (decoded,) = self._decoded(encoded, [self.most_tokens(window)])
        posteriors = None
        if along is not None:
            fed = torch.cat([self.prompt[0], self.prompt.new_tensor(along[:-1])]).unsqueeze(0)
            output = self.network(encoder_outputs=encoded, decoder_input_ids=fed, use_cache=False)
            # A position for every token: the first is written behind the whole prompt.
            posteriors = output.logits[0, self.prompt.shape[1] - 1 :].log_softmax(-1)
        return Hypothesis(
            text=self._text(decoded),
            tokens=decoded.tokens,
            log_probability=decoded.log_probability,
            entropy=decoded.entropy,
            informative=len(decoded.tokens),
            log_posteriors=posteriors,
            at_cap=decoded.at_cap,
        )

    def _encoded(self, windows: Sequence[Tensor]) -> Any:
        return self.network.model.encoder(self._features(windows))

    def _decoded(self, encoded: Any, most: Sequence[int]) -> list[Decoded]:
        """Greedy outputs for encoded windows, of so many tokens each at most."""
        size = len(most)
        ends = self.prompt.new_tensor(_end_tokens(self.network))
        suppressed, suppressed_at_first = self._suppressed()
        fed = self.prompt.repeat(size, 1)  # (B, prompt), then (B, 1)
        written: list[Tensor] = []
        lengths = torch.zeros(size, dtype=torch.long, device=fed.device)
        log_probability = torch.zeros(size, device=fed.device)
        entropy = torch.zeros(size, device=fed.device)
        going = torch.ones_like(lengths, dtype=torch.bool)
        cut = torch.zeros_like(going)
        caps = lengths.new_tensor(most)
        cache = None
        while bool(going.any()):
            output = self.network(
                encoder_outputs=encoded,
                decoder_input_ids=fed,
                past_key_values=cache,
                use_cache=True,
            )
            cache = output.past_key_values
            logits = output.logits[:, -1]  # (B, vocabulary)
            logits[:, suppressed if written else suppressed_at_first] = -torch.inf
            posteriors = logits.log_softmax(-1)
            best = posteriors.max(-1)
            token = torch.where(going, best.indices, ends[0])
            log_probability += best.values * going
            # 0·log 0 is 0: a suppressed token gives nan otherwise.
            entropy -= (posteriors.exp() * posteriors).nan_to_num(0).sum(-1) * going
            lengths += going
            going = going & ~torch.isin(token, ends)
            cut |= going & (lengths == caps)
            going = going & ~cut
            written.append(token)
            fed = token.unsqueeze(1)
        rows = torch.stack(written, 1).tolist()
        return [
            Decoded(tuple(row[:length]), total, nats, at_cap)
            for row, length, total, nats, at_cap in zip(
                rows,
                lengths.tolist(),
                log_probability.tolist(),
                entropy.tolist(),
                cut.tolist(),
                strict=True,
            )
        ]

    def save_pretrained(self, folder: Path) -> None:
        """Writes a stock folder that `WhisperForConditionalGeneration.from_pretrained` loads."""
        self.network.save_pretrained(folder)
        self.feature_extractor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def _run(self, features: Tensor, tokens: Tensor) -> object:
        return self.network(features, decoder_input_ids=tokens, use_cache=False)

    def _text(self, decoded: Decoded) -> str:
        text = self.tokenizer.decode(list(decoded.tokens), skip_special_tokens=True)
        return _TIMESTAMP.sub("", text).strip()

    def _suppressed(self) -> tuple[Tensor, Tensor]:
        """Tokens the checkpoint never writes, and those that it does not begin with either."""
        settings = self.network.generation_config
        always = list(settings.suppress_tokens or [])
        at_first = [*always, *(settings.begin_suppress_tokens or [])]
        return (
            self.prompt.new_tensor(always, dtype=torch.long),
            self.prompt.new_tensor(at_first, dtype=torch.long),
        )

    def _fed(self, decoded: Decoded) -> Tensor:
        """The tokens that generation fed to the decoder, shape (positions,)."""
        return torch.cat([self.prompt[0], self.prompt.new_tensor(decoded.tokens[:-1])])

    def _features(self, windows: Sequence[Tensor]) -> Tensor:
        """Log-mel features padded to the window, shape (B, mel bins, 3000)."""
        for window in windows:
            # The feature extractor would cut it without a word.
            if window.numel() > self.feature_extractor.n_samples:
                raise ModelError(
                    f"{self.source.id} takes at most {self.window_seconds:g} s at once, found "
                    f"{window.numel() / self.sampling_rate:.2f} s: cut the recording into windows"
                )
        inputs = self.feature_extractor(
            [window.cpu().numpy() for window in windows],
            sampling_rate=self.sampling_rate,
            return_tensors="pt",
        )
        features: Tensor = inputs.input_features.to(self.network.device)
        return features

    def _valid_positions(
        self, windows: Sequence[Tensor], tokens: list[int]
    ) -> Callable[[str], list[int]]:
        """Positions of each layer that hold a window's own audio or text, not padding."""
        encoder = self.network.model.encoder
        samples = int(self.feature_extractor.hop_length) * encoder.conv1.stride[0]
        after_conv1 = [-(-window.numel() // samples) for window in windows]  # of 10 ms
        frames = [-(-count // encoder.conv2.stride[0]) for count in after_conv1]  # of 20 ms

        def valid(name: str) -> list[int]:
            if name == "model.encoder.conv1":
                return after_conv1
            heard = name.startswith("model.encoder.")
            return frames if heard or name.endswith(_READS_ENCODER) else tokens

        return valid


_READS_ENCODER = (".encoder_attn.k_proj", ".encoder_attn.v_proj")


def _end_tokens(network: WhisperForConditionalGeneration) -> list[int]:
    ids = network.generation_config.eos_token_id
    if ids is None:
        ids = network.config.eos_token_id
    return [ids] if isinstance(ids, int) else list(ids)


def _check_processor(
    source: Source,
    network: WhisperForConditionalGeneration,
    feature_extractor: WhisperFeatureExtractor,
    tokenizer: Any,
) -> None:
    config = network.config
    if feature_extractor.feature_size != config.num_mel_bins:
        raise ModelError(
            f"{source.id}: the model takes {config.num_mel_bins} mel bins, its "
            f"preprocessor_config.json makes {feature_extractor.feature_size}: they belong to "
            "different models"
        )
    # Without its files a tokenizer loads all the same, and knows next to nothing.
    needed = max(_end_tokens(network)) + 1
    if len(tokenizer) < needed:
        raise ModelError(
            f"{source.id}: its tokenizer knows {len(tokenizer)} tokens, the model at least "
            f"{needed}: expected tokenizer.json, or vocab.json and merges.txt, beside the weights"
        )


def _code(language: str) -> str:
    name = language.strip().lower().replace("_", "-").split("-")[0]  # pt-BR is pt
    return TO_LANGUAGE_CODE.get(name, name)


def _prompt(
    source: Source, network: WhisperForConditionalGeneration, tokenizer: Any, language: str
) -> list[int]:
    """Start, language and task where there are several, no timestamps.

    From the generation config; where an old one lacks them, by their names in the vocabulary.
    """
    settings = network.generation_config
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    languages: dict[str, int] = getattr(settings, "lang_to_id", None) or {}
    multilingual = getattr(settings, "is_multilingual", None)
    if multilingual is None:
        multilingual = bool(languages) or network.config.vocab_size >= _MULTILINGUAL_VOCABULARY
    code = _code(language)
    start = settings.decoder_start_token_id
    prompt = [int(network.config.decoder_start_token_id if start is None else start)]
    if multilingual:
        spoken = (languages or vocabulary).get(f"<|{code}|>")
        tasks = getattr(settings, "task_to_id", None) or {}
        task = tasks.get("transcribe", vocabulary.get("<|transcribe|>"))
        if spoken is None or task is None:
            known = ", ".join(sorted(token.strip("<|>") for token in languages))
            raise ModelError(
                f"{source.id} has no tokens for the language {language!r} and the task "
                f"'transcribe': it knows {known or 'no language by name'}"
            )
        prompt += [spoken, task]
    elif code != "en":
        raise ModelError(
            f"{source.id} knows English only, found the language {language!r}: take a "
            "multilingual checkpoint such as openai/whisper-tiny"
        )
    no_timestamps = getattr(settings, "no_timestamps_token_id", None)
    if no_timestamps is None:
        no_timestamps = vocabulary.get("<|notimestamps|>")
    return prompt if no_timestamps is None else [*prompt, int(no_timestamps)]
