"""A small Wav2Vec2ForCTC in a Hugging Face folder that stock `transformers` loads offline."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
)
from transformers.utils import logging

logging.disable_progress_bar()  # a bar for 4 MB only garbles a log

# The symbols and order of facebook/wav2vec2-base-960h.
VOCABULARY = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"]
BLANK = 0
SYMBOL_ID = {symbol: index for index, symbol in enumerate(VOCABULARY)}


def new_base_model(seed: int) -> Wav2Vec2ForCTC:
    """About 2.1 million parameters, randomly initialised."""
    torch.manual_seed(seed)
    config = Wav2Vec2Config(
        vocab_size=len(VOCABULARY),
        hidden_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=768,
        conv_dim=(32, 64, 96, 128, 128, 128, 128),
        conv_kernel=(10, 3, 3, 3, 3, 2, 2),
        conv_stride=(5, 2, 2, 2, 2, 2, 2),
        conv_bias=False,
        feat_extract_norm="group",
        do_stable_layer_norm=True,
        num_conv_pos_embeddings=32,
        num_conv_pos_embedding_groups=8,
        hidden_dropout=0.05,
        attention_dropout=0.05,
        activation_dropout=0.0,
        feat_proj_dropout=0.05,
        final_dropout=0.0,
        layerdrop=0.0,
        mask_time_prob=0.05,
        mask_time_length=5,
        mask_feature_prob=0.0,
        ctc_zero_infinity=True,
        ctc_loss_reduction="mean",
        pad_token_id=BLANK,
    )
    return Wav2Vec2ForCTC(config)


def encode(text: str) -> list[int]:
    """Upper-case text as symbol ids, spaces as `|`."""
    return [SYMBOL_ID["|" if character == " " else character] for character in text]


def decode(ids: list[int]) -> str:
    """Greedy CTC: repeats merged, blanks dropped."""
    symbols = [
        VOCABULARY[current]
        for previous, current in zip([BLANK, *ids], ids, strict=False)
        if current != previous and current != BLANK
    ]
    return " ".join("".join(symbols).replace("|", " ").split())


def normalize(signal: torch.Tensor) -> torch.Tensor:
    """Zero mean and unit variance over time, as Wav2Vec2FeatureExtractor does."""
    centred = signal - signal.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-7).sqrt()


@torch.inference_mode()
def transcribe(model: Wav2Vec2ForCTC, signal: torch.Tensor) -> str:
    """What a model in eval mode hears in one recording, shape = (n_samples,), at 16 kHz."""
    logits = model(normalize(signal)[None]).logits[0]  # (n_frames, n_symbols)
    return decode(logits.argmax(-1).tolist())


def save_base_model(model: Wav2Vec2ForCTC, folder: Path) -> None:
    """Write weights as fp16, and the processor's files."""
    folder.mkdir(parents=True, exist_ok=True)
    half = copy.deepcopy(model).to(torch.float16)
    half.save_pretrained(folder)
    # Stored as fp16 to be small; computed in fp32, which every CPU does well and exactly alike.
    config_path = folder / "config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    config["dtype"] = "float32"
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    Wav2Vec2FeatureExtractor(
        feature_size=1,
        sampling_rate=16_000,
        padding_value=0.0,
        do_normalize=True,
        return_attention_mask=False,  # a group-norm model was never shown a mask
    ).save_pretrained(folder)
    with TemporaryDirectory() as temporary:
        vocabulary_path = Path(temporary, "vocab.json")
        vocabulary_path.write_text(json.dumps(SYMBOL_ID), encoding="utf-8")
        Wav2Vec2CTCTokenizer(str(vocabulary_path)).save_pretrained(folder)
