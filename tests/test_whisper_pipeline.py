"""A tiny random Whisper through the whole pipeline, by the commands a person runs."""

import json

import pytest
import torch
from tiny_whisper import tiny_whisper
from transformers import WhisperForConditionalGeneration

from fpspeech import Personal, load_speech_model
from fpspeech.cli import main


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    return tiny_whisper(tmp_path_factory.mktemp("tiny-whisper"))


def run(capsys, *arguments) -> dict:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    assert not end.value.code
    out = capsys.readouterr().out
    return json.loads(out) if out else {}


def test_personalize_evaluate_and_merge_a_whisper(capsys, tmp_path, speech, whisper):
    where = ("--audio", speech, "--model", whisper, "--json")
    made = run(
        capsys, "personalize", "--speaker", "ann", "--out", tmp_path / "ann", "--sparsity", 0.5,
        "--component", "decoder.ffn=0", *where,
    )  # fmt: skip
    assert made["recordings"] == 5
    dense = {name for name, layer in made["layers"].items() if layer["sparsity"] == 0}
    assert dense
    assert all(".decoder." in name and ".fc" in name for name in dense)
    assert "proj_out" in {exclusion["name"] for exclusion in made["excluded"]}

    measured = run(capsys, "evaluate", tmp_path / "ann", *where)
    assert measured["recordings"] == 3
    for row in (measured["dense"], measured["personal"]):
        assert {"wer", "insertion_rate", "repetitive", "at_cap"} <= row.keys()

    run(capsys, "merge", tmp_path / "ann", "--model", whisper, "--out", tmp_path / "merged")
    stock = WhisperForConditionalGeneration.from_pretrained(tmp_path / "merged").eval()
    model = load_speech_model(whisper, device="cpu")
    features = torch.randn(1, model.network.config.num_mel_bins, 3000)
    tokens = torch.tensor([[model.network.config.decoder_start_token_id, 1, 2]])
    with torch.no_grad(), Personal.load(tmp_path / "ann").apply(model):
        applied = model.network(input_features=features, decoder_input_ids=tokens).logits
        assert torch.equal(stock(input_features=features, decoder_input_ids=tokens).logits, applied)
