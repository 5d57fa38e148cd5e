"""Tiny models and recordings that the tests make themselves; nothing is fetched."""

import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
os.environ["OMP_NUM_THREADS"] = "1"  # tiny models: threads cost more than they give

import numpy as np
import pytest
import soundfile
import torch

sys.path.insert(0, str(Path(__file__).parent / "models"))

from tiny_whisper import tiny_whisper

torch.set_num_threads(1)

RATE = 16_000
LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"]


def write_tiny_wav2vec2(folder: Path, norm: str, seed: int = 0) -> Path:
    """A random Wav2Vec2ForCTC in Hugging Face format; norm "group" or "layer"."""
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
        Wav2Vec2Processor,
    )

    torch.manual_seed(seed)
    config = Wav2Vec2Config(
        vocab_size=len(LETTERS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8, 8, 16),
        conv_kernel=(10, 3, 2),
        conv_stride=(5, 4, 4),
        conv_bias=norm == "layer",
        feat_extract_norm=norm,
        do_stable_layer_norm=norm == "layer",
        num_feat_extract_layers=3,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4,
        mask_time_prob=0.0,
    )
    network = Wav2Vec2ForCTC(config)
    with torch.no_grad():
        network.lm_head.weight.mul_(30)  # so that something is heard
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({letter: n for n, letter in enumerate(LETTERS)}))
    processor = Wav2Vec2Processor(
        Wav2Vec2FeatureExtractor(return_attention_mask=norm == "layer"),
        Wav2Vec2CTCTokenizer(str(vocabulary)),
    )
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def sound(seconds: float, seed: int, rate: int = RATE) -> np.ndarray:
    """Noise with a pitch in it, float64, shape (samples,)."""
    generator = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    pitch = 120 + 30 * seed % 200
    tone = np.sin(2 * np.pi * pitch * time) * np.sin(2 * np.pi * 3 * time)
    return 0.2 * tone + 0.05 * generator.standard_normal(time.size)


@pytest.fixture(scope="session")
def tiny_group(tmp_path_factory) -> Path:
    """A Wav2Vec2ForCTC with a group norm: no attention mask."""
    return write_tiny_wav2vec2(tmp_path_factory.mktemp("models") / "tiny-group", "group")


@pytest.fixture(scope="session")
def tiny_whisper_folder(tmp_path_factory) -> Path:
    """A multilingual WhisperForConditionalGeneration."""
    return tiny_whisper(tmp_path_factory.mktemp("models") / "tiny-whisper")


@pytest.fixture(scope="session")
def tiny_layer(tmp_path_factory) -> Path:
    """A Wav2Vec2ForCTC with layer norms: padded batches under an attention mask."""
    return write_tiny_wav2vec2(tmp_path_factory.mktemp("models") / "tiny-layer", "layer")


@pytest.fixture
def speech(tmp_path) -> Path:
    """Two speakers, five recordings to adapt and three transcribed ones to test on each."""
    folder = tmp_path / "speech"
    rows = []
    for voice, speaker in enumerate(("ann", "ben")):
        for number in range(8):
            split = "adapt" if number < 5 else "test"
            name = f"{speaker}/{split}{number}.wav"
            (folder / speaker).mkdir(parents=True, exist_ok=True)
            samples = sound(0.6 + 0.1 * number, seed=10 * voice + number)
            soundfile.write(folder / name, samples, RATE)
            rows.append({"audio": name, "speaker": speaker, "text": "LIGHT ON", "split": split})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "manifest.jsonl").write_text(lines)
    return folder
