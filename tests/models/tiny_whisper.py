"""A random Whisper of a few thousand weights, as a stock folder, made without network."""

from pathlib import Path

import torch
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

LETTERS = [*"abcdef", "Ġ"]
SPECIAL = ["<|endoftext|>", "<|startoftranscript|>"]
LANGUAGES = ["<|en|>", "<|de|>"]
TASKS = ["<|translate|>", "<|transcribe|>"]
TIMES = ["<|0.00|>", "<|0.02|>"]


def tiny_whisper(
    folder: Path, *, multilingual: bool = True, mel_bins: int = 8, seed: int = 28
) -> Path:
    """Writes the folder; its outputs are chaotic, some end and some run to the cap."""
    specials = [*SPECIAL, *(LANGUAGES + TASKS if multilingual else []), "<|notimestamps|>"]
    names = [*LETTERS, *specials, *TIMES]
    ids = {name: index for index, name in enumerate(names)}
    end = ids["<|endoftext|>"]
    config = WhisperConfig(
        vocab_size=len(names),
        num_mel_bins=mel_bins,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=20,
        max_target_positions=24,
        init_std=0.5,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=ids["<|startoftranscript|>"],
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    torch.manual_seed(seed)
    network = WhisperForConditionalGeneration(config)
    with torch.no_grad():  # tokens depend on where they stand, and the end can be reached
        network.model.decoder.embed_positions.weight.normal_(std=1.0)
        network.model.decoder.embed_tokens.weight[end].normal_(std=0.5)
    settings = dict(
        is_multilingual=multilingual,
        no_timestamps_token_id=ids["<|notimestamps|>"],
        return_timestamps=False,
        suppress_tokens=[ids["a"], *(ids[name] for name in specials[1:] + TIMES)],
        begin_suppress_tokens=[end],
        max_length=24,
        decoder_start_token_id=config.decoder_start_token_id,
        eos_token_id=end,
        bos_token_id=end,
        pad_token_id=end,
    )
    if multilingual:
        settings["lang_to_id"] = {name: ids[name] for name in LANGUAGES}
        settings["task_to_id"] = {name.strip("<|>"): ids[name] for name in TASKS}
    network.generation_config = GenerationConfig(**settings)
    network.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=mel_bins).save_pretrained(folder)
    tokenizer = WhisperTokenizer(vocab={name: ids[name] for name in LETTERS}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": specials})
    tokenizer.add_tokens(TIMES)
    assert tokenizer.get_vocab() == ids, (tokenizer.get_vocab(), ids)
    tokenizer.save_pretrained(folder)
    return folder
