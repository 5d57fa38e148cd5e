"""Miniature corpora in the layout each is published in, with the traps of each.

No test here opens audio: files of no bytes stand for recordings.
"""

import random
from pathlib import Path

import pytest

from fpspeech.corpora import ManifestError, Utterance, layout
from fpspeech.corpora.common_voice import (
    find_common_voice,
    prepare_common_voice,
    read_common_voice_accents,
)
from fpspeech.corpora.fsdd import find_fsdd, prepare_fsdd
from fpspeech.corpora.l2_arctic import find_l2_arctic, prepare_l2_arctic
from fpspeech.corpora.layout import CorpusNotFound
from fpspeech.corpora.librispeech import chapter_of, find_librispeech, prepare_librispeech
from fpspeech.corpora.speech_commands import find_speech_commands, prepare_speech_commands
from fpspeech.corpora.speechocean762 import (
    Reader,
    find_speechocean762,
    prepare_speechocean762,
    read_speechocean762_readers,
)
from fpspeech.corpora.torgo import find_torgo, prepare_torgo
from fpspeech.corpora.uaspeech import find_uaspeech, prepare_uaspeech
from fpspeech.corpora.vctk import find_vctk, prepare_vctk
from fpspeech.corpora.voxpopuli import find_voxpopuli, prepare_voxpopuli

ALPHABET = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot")
ALPHABET += ("golf", "hotel", "india", "juliet", "kilo", "lima")


def write(path: Path, content: str | bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def sides(utterances: list[Utterance], key) -> dict:
    """The splits that each key is in."""
    found: dict = {}
    for each in utterances:
        assert each.split in ("adapt", "test")
        found.setdefault(key(each), set()).add(each.split)
    return found


def apart(utterances: list[Utterance], key) -> bool:
    return all(len(splits) == 1 for splits in sides(utterances, key).values())


def by_id(utterances: list[Utterance]) -> dict[str, Utterance]:
    assert [each.id for each in utterances] == sorted(each.id for each in utterances)
    return {each.id: each for each in utterances}


def refusal(call, *arguments, **options) -> str:
    with pytest.raises(ManifestError) as caught:
        call(*arguments, **options)
    return str(caught.value)


# LibriSpeech


def librispeech(root: Path, part: str = "test-other") -> Path:
    """Speaker 10 of three chapters of four, speaker 20 of one chapter of five."""
    for speaker, chapter, count in (("10", "1", 4), ("10", "2", 4), ("10", "3", 4), ("20", "9", 5)):
        folder = root / part / speaker / chapter
        name = f"{speaker}-{chapter}"
        ids = [f"{name}-{number:04d}" for number in range(count)]
        for identity in ids:
            write(folder / f"{identity}.flac")
        lines = "".join(f"{each} WORDS OF {each[-1]}\n" for each in ids)
        write(folder / f"{name}.trans.txt", lines)
    write(root / "SPEAKERS.TXT", ";ID |SEX\n")
    return root


def test_librispeech_is_split_by_chapter_or_in_order(tmp_path):
    root = librispeech(tmp_path / "LibriSpeech")
    assert find_librispeech(tmp_path) == find_librispeech(root) == root
    found = prepare_librispeech(root)
    assert len(found) == 17
    assert by_id(found)["10-2-0003"].text == "WORDS OF 3"
    assert by_id(found)["10-2-0003"].audio == root / "test-other/10/2/10-2-0003.flac"
    ten = [each for each in found if each.speaker == "10"]
    assert apart(ten, chapter_of)
    assert set().union(*sides(ten, chapter_of).values()) == {"adapt", "test"}
    twenty = [each.split for each in found if each.speaker == "20"]
    assert twenty == ["adapt"] * 2 + ["test"] * 3
    assert prepare_librispeech(root) == found
    drawn = {tuple(each.split for each in prepare_librispeech(root, seed=n)) for n in range(9)}
    assert len(drawn) > 1


def test_librispeech_reads_train_only_where_it_is_named(tmp_path):
    root = librispeech(tmp_path, "train-clean-100")
    assert "may have seen the train parts" in refusal(prepare_librispeech, root)
    assert len(prepare_librispeech(root, parts=["train-clean-100"])) == 17
    assert "dev-clean: expected this part" in refusal(
        prepare_librispeech, root, parts=["dev-clean"]
    )
    with pytest.raises(ValueError, match="found 'testother'"):
        prepare_librispeech(root, parts=["testother"])


def test_librispeech_lines_of_odd_forms(tmp_path):
    root = librispeech(tmp_path)
    transcript = root / "test-other/10/1/10-1.trans.txt"
    lines = ["10-1-0000  TWO  SPACES ", "", "10-1-0001\tA TAB", "10-1-0002 ÉTÉ", "10-1-0003 X\r"]
    write(transcript, b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    write(root / "test-other/10/1/._10-1-0000.flac")
    write(root / "test-other/10/1/.DS_Store")
    write(root / "test-other/.hidden/1/x.flac")
    found = by_id(prepare_librispeech(root))
    assert len(found) == 17
    texts = [found[f"10-1-000{number}"].text for number in range(4)]
    assert texts == ["TWO SPACES", "A TAB", "ÉTÉ", "X"]


def test_librispeech_names_what_is_wrong(tmp_path):
    root = librispeech(tmp_path)
    folder = root / "test-other/20/9"
    transcript = folder / "20-9.trans.txt"
    good = transcript.read_text()

    audio = folder / "20-9-0004.flac"
    audio.unlink()
    assert f"1 missing: {audio} ({transcript})" in refusal(prepare_librispeech, root)
    write(audio)

    stray = write(folder / "20-9-0009.flac")
    assert f"20-9.trans.txt for every recording, found none for {stray}" in refusal(
        prepare_librispeech, root
    )
    stray.unlink()

    for bad, said in (
        (good + "20-9-0001 AGAIN\n", "line 6: expected an id of its own, found '20-9-0001'"),
        (good.replace(" WORDS OF 2", ""), "line 3: expected an id and its words"),
        (good.replace("20-9-0000", "10-9-0000"), "found none for"),
        (good + "10-9-0000 OTHER\n", "expected ids that begin with 20-9-"),
        (good.encode() + b"20-9-0004 caf\xe9\n", "line 6: expected UTF-8, found the byte 0xe9"),
    ):
        write(transcript, bad)
        message = refusal(prepare_librispeech, root)
        assert said in message
        assert str(folder) in message

    transcript.unlink()
    assert f"{transcript}: expected this file" in refusal(prepare_librispeech, root)


def test_an_id_in_two_parts_is_an_error(tmp_path):
    root = librispeech(librispeech(tmp_path), "dev-other")
    message = refusal(prepare_librispeech, root)
    assert "expected an id of its own, found '10-1-0000'" in message


# speechocean762


def speechocean762(root: Path) -> Path:
    """Two speakers of eight prompts; speaker 0002 says the first one three times."""
    rows = [("0001", f"1{n}", ALPHABET[n]) for n in range(8)]
    rows += [("0002", f"2{n}", ALPHABET[max(0, n - 2)]) for n in range(10)]
    for speaker, identity, _ in rows:
        write(root / f"WAVE/SPEAKER{speaker}/{identity}.WAV")
    table = {
        "wav.scp": [f"{i}\tWAVE/SPEAKER{s}/{i}.WAV" for s, i, _ in rows],
        "text": [f"{i}\t{w.upper()}" for _, i, w in rows],
        "utt2spk": [f"{i}\t{s}" for s, i, _ in rows],
        "spk2age": ["0001\t6", "0002\t41"],
        "spk2gender": ["0001\tm", "0002\tf"],
    }
    for name, lines in table.items():
        write(root / "test" / name, "".join(f"{line}\n" for line in lines))
    return root


def test_speechocean762_is_split_by_prompt(tmp_path):
    root = speechocean762(tmp_path / "speechocean762")
    assert find_speechocean762(tmp_path) == root
    found = prepare_speechocean762(root)
    assert len(found) == 18
    assert by_id(found)["10"].audio == root / "WAVE/SPEAKER0001/10.WAV"
    assert by_id(found)["10"].text == "ALPHA"
    assert apart(found, lambda each: (each.speaker, each.text))
    assert [each.split for each in found if each.speaker == "0001"].count("test") == 4
    assert read_speechocean762_readers(root) == {
        "0001": Reader("0001", 6, "m"),
        "0002": Reader("0002", 41, "f"),
    }


def test_speechocean762_does_not_depend_on_the_order_of_lines(tmp_path):
    root = speechocean762(tmp_path)
    found = prepare_speechocean762(root, seed=3)
    for name in ("wav.scp", "text", "utt2spk"):
        lines = (root / "test" / name).read_text().splitlines()
        random.Random(name).shuffle(lines)
        write(root / "test" / name, "\r\n".join(lines))
    assert prepare_speechocean762(root, seed=3) == found


def test_speechocean762_names_what_is_wrong(tmp_path):
    root = speechocean762(tmp_path)
    audio = root / "WAVE/SPEAKER0001/13.WAV"
    audio.unlink()
    assert str(audio) in refusal(prepare_speechocean762, root)
    write(audio)
    text = root / "test/text"
    write(text, text.read_text().replace("13\tDELTA\n", ""))
    message = refusal(prepare_speechocean762, root)
    assert f"{text}: expected the ids of wav.scp, found a difference in 13" in message
    write(root / "test/spk2age", "0001\tsix\n")
    assert "spk2age: expected years" in refusal(read_speechocean762_readers, root)
    with pytest.raises(ValueError, match="found 'dev'"):
        prepare_speechocean762(root, parts=["dev"])
    assert "expected this file of the corpus" in refusal(
        prepare_speechocean762, root, parts=["train"]
    )


# FSDD


def test_fsdd_is_split_by_take(tmp_path):
    root = tmp_path / "free-spoken-digit-dataset"
    for speaker in ("theo", "jackson"):
        for digit in (0, 7):
            for take in range(12):
                suffix = ".WAV" if take == 3 else ".wav"
                write(root / "recordings" / f"{digit}_{speaker}_{take}{suffix}")
    write(root / "recordings/._0_theo_0.wav")
    assert find_fsdd(tmp_path) == root
    found = by_id(prepare_fsdd(root, test_share=0.25))
    assert len(found) == 48
    assert found["theo-7-10"].text == "SEVEN"
    assert apart(list(found.values()), lambda each: (each.speaker, each.id[-2:]))
    tested = {int(each.id[-2:]) for each in found.values() if each.split == "test"}
    assert tested == {9, 10, 11}
    assert prepare_fsdd(root / "recordings") == prepare_fsdd(root)
    odd = write(root / "recordings/theo_seven.wav")
    assert f"{odd}: expected a name like" in refusal(prepare_fsdd, root)
    odd.unlink()
    write(root / "recordings/0_theo_00.wav")
    assert "found 'theo-0-00', which" in refusal(prepare_fsdd, root)


# Common Voice


def common_voice(root: Path, rows: list[tuple[str, str, str, str]], header: str = "") -> Path:
    names = header or "client_id\tpath\tsentence_id\tsentence\tup_votes\taccents"
    lines = [f"{c}\t{p}\tid\t{s}\t2\t{a}" for c, p, s, a in rows]
    write(root / "validated.tsv", "\n".join([names, *lines]) + "\n")
    for _, path, _, _ in rows:
        write(root / "clips" / path)
    return root


def volunteers(count: int = 12) -> list[tuple[str, str, str, str]]:
    return [
        (speaker, f"cv_{speaker}_{n}.mp3", f"{ALPHABET[n].title()},  said HE.", accent)
        for speaker, accent in (("ada", "Scottish English"), ("bob", "England English|posh"))
        for n in range(count)
    ]


def test_common_voice_is_split_by_sentence(tmp_path, caplog):
    rows = volunteers()
    rows[3] = ("ada", "cv_ada_3.mp3", '"Delta, said he.', "Scottish English")
    rows += [("ada", "cv_ada_x.mp3", "ALPHA said he", ""), ("cy", "cv_cy_0.mp3", "Alone.", "")]
    rows += [("ada", "cv_ada_y.mp3", " … ", "")]
    root = common_voice(tmp_path / "common_voice" / "en", rows)
    assert find_common_voice(tmp_path) == find_common_voice(root.parent) == root
    found = prepare_common_voice(root, min_utterances=5)
    assert {each.speaker for each in found} == {"ada", "bob"}
    assert len(found) == 24
    assert by_id(found)["cv_bob_0"].text == "Alpha, said HE."
    assert by_id(found)["cv_ada_3"].text == '"Delta, said he.'
    assert apart(found, lambda each: each.id[-2:])  # the sentence, for both speakers
    assert "skipped 1, a sentence that the speaker has said: cv_ada_x.mp3" in caplog.text
    assert "skipped 1, clips of no sentence: cv_ada_y.mp3" in caplog.text
    assert "none on one side: cy" in caplog.text
    random.Random(1).shuffle(rows)
    assert prepare_common_voice(common_voice(root, rows), min_utterances=5) == found


def test_common_voice_accents(tmp_path):
    root = common_voice(tmp_path, volunteers())
    found = prepare_common_voice(root, min_utterances=5, accent="scottish")
    assert {each.speaker for each in found} == {"ada"}
    assert read_common_voice_accents(root)["bob"] == {"England English|posh": 12}
    message = refusal(prepare_common_voice, root, accent="welsh")
    assert "whose accents contain 'welsh', found none" in message
    assert "lower min_utterances" in refusal(prepare_common_voice, root, min_utterances=13)


def test_common_voice_of_the_first_releases(tmp_path):
    rows = [(c, p.removesuffix(".mp3"), s, a) for c, p, s, a in volunteers()]
    header = "client_id\tpath\tx\tsentence\tup_votes\taccent"
    root = common_voice(tmp_path, rows, header)
    for _, path, _, _ in rows:
        write(root / "clips" / f"{path}.mp3")
    assert len(prepare_common_voice(root, min_utterances=5, accent="england")) == 12


def test_common_voice_names_what_is_wrong(tmp_path):
    rows = volunteers()
    root = common_voice(tmp_path, rows)
    clip = root / "clips/cv_bob_1.mp3"
    clip.unlink()
    assert f"{clip} ({root / 'validated.tsv'})" in refusal(
        prepare_common_voice, root, min_utterances=5
    )
    common_voice(root, rows, "client\tpath\tx\tsentence\ty\taccents")
    assert "expected the column 'client_id', found client, path" in refusal(
        prepare_common_voice, root
    )
    common_voice(root, rows)
    table = root / "validated.tsv"
    good = table.read_text()
    write(table, good.replace("cv_ada_1.mp3", "../cv_ada_1.mp3"))
    assert "line 3: expected the name of a file in clips/" in refusal(prepare_common_voice, root)
    write(table, good + "cut\toff\n")
    assert "line 26: expected 6 fields between tabs, found 2" in refusal(prepare_common_voice, root)


# L2-ARCTIC


def l2_arctic(root: Path, prompts: range = range(1, 21)) -> Path:
    for speaker in ("ABA", "HKK"):
        folder = root / speaker / speaker if speaker == "HKK" else root / speaker
        for number in prompts:
            write(folder / f"wav/arctic_a{number:04d}.wav")
            write(folder / f"transcript/arctic_a{number:04d}.txt", f"Sentence  {number}.\n")
    write(root / "suitcase_corpus/wav/aba.wav")
    return root


def test_l2_arctic_has_one_split_of_prompts_for_everybody(tmp_path):
    root = l2_arctic(tmp_path / "l2arctic_release_v5.0")
    assert find_l2_arctic(tmp_path) == root
    found = prepare_l2_arctic(root)
    assert len(found) == 40
    assert by_id(found)["HKK/arctic_a0007"].text == "Sentence 7."
    assert apart(found, lambda each: each.id.partition("/")[2])
    fewer = prepare_l2_arctic(l2_arctic(tmp_path / "fewer", range(5, 15)))
    assert {each.id: each.split for each in fewer}.items() <= {
        each.id: each.split for each in found
    }.items()


def test_l2_arctic_names_what_is_wrong(tmp_path):
    root = l2_arctic(tmp_path)
    transcript, audio = (
        root / "ABA" / name for name in ("transcript/arctic_a0003.txt", "wav/arctic_a0003.wav")
    )
    write(transcript, b"caf\xe9 \x96 na\xefve")
    assert by_id(prepare_l2_arctic(root))["ABA/arctic_a0003"].text == "café – naïve"
    write(transcript, "\n")
    assert f"{transcript}: expected the words" in refusal(prepare_l2_arctic, root)
    transcript.unlink()
    assert f"found none for {audio}" in refusal(prepare_l2_arctic, root)
    write(transcript, "Words.")
    audio.unlink()
    assert f"1 missing: {audio}" in refusal(prepare_l2_arctic, root)
    odd = write(root / "ABA/transcript/notes.txt", "x")
    assert f"{odd}: expected a name like arctic_a0001.txt" in refusal(prepare_l2_arctic, root)


# VCTK


def vctk(root: Path) -> Path:
    """Prompts 1 to 24 in common; others of the same words under other numbers; holes as known."""
    for speaker, shift in (("p225", 0), ("p226", 3), ("p315", 0), ("s5", 0)):
        for number in range(1, 41):
            name = f"{speaker}_{number:03d}"
            for microphone in (1, 2):
                write(root / f"wav48_silence_trimmed/{speaker}/{name}_mic{microphone}.flac")
            words = f"Common {number}." if number < 25 else f"Own number {number + shift}."
            if speaker != "p315":
                write(root / f"txt/{speaker}/{name}.txt", words + "\n")
    write(root / "txt/p225/p225_001.txt", "Comon 1.\n")  # a slip of the pen, the same prompt
    (root / "wav48_silence_trimmed/p226/p226_002_mic1.flac").unlink()
    write(root / "wav48_silence_trimmed/log.txt")
    return root


def test_vctk_is_split_by_prompt_and_its_known_holes_are_counted(tmp_path, caplog):
    root = vctk(tmp_path / "VCTK-Corpus-0.92")
    assert find_vctk(tmp_path) == root
    found = prepare_vctk(root)
    assert len(found) == 3 * 40 - 1
    assert by_id(found)["p225_030"].audio.name == "p225_030_mic1.flac"
    common = [each for each in found if int(each.id[-3:]) < 25]
    assert apart(common, lambda each: each.id[-3:])
    assert apart([each for each in found if "Own" in each.text], lambda each: each.text)
    assert "skipped 40, no transcript" in caplog.text
    assert "skipped 1, no recording of microphone 1" in caplog.text
    assert "p226_002.txt" in caplog.text
    assert len(prepare_vctk(root, microphone=2)) == 120
    empty = write(root / "txt/p226/p226_030.txt", " \n")
    assert f"{empty}: expected the words" in refusal(prepare_vctk, root)
    with pytest.raises(ValueError, match="microphone"):
        prepare_vctk(root, microphone=3)


# TORGO


def torgo(root: Path) -> Path:
    """F01 has one session; M01 has three, which repeat the digits."""
    sessions = [("F/F01", "Session1", ALPHABET), ("MC/MC01", "Session1", ALPHABET[:4])]
    for number in (1, 2, 3):
        own = [f"sentence {number} {word}" for word in ALPHABET[:6]]
        sessions.append(("M01", f"Session{number}", ["One", "two", *own]))
    for speaker, session, prompts in sessions:
        for number, text in enumerate(prompts, start=1):
            write(root / speaker / session / f"prompts/{number:04d}.txt", f"{text}\r\n")
            write(root / speaker / session / f"wav_headMic/{number:04d}.wav")
            write(root / speaker / session / f"wav_arrayMic/{number:04d}.wav")
    folder = root / "F/F01/Session1"
    odd = ["[say 'ah-p-eee' repeatedly]", "[relax your mouth in its normal position]"]
    odd += ["input/images/cowboy.jpg", "xxx", "", "stick [twice]"]
    for number, text in enumerate(odd, start=50):
        write(folder / f"prompts/{number:04d}.txt", text)
        write(folder / f"wav_headMic/{number:04d}.wav")
    write(folder / "prompts/0090.txt", "no recording")
    write(folder / "wav_headMic/0091.wav")
    write(folder / "wav_headMic/.0092.wav")
    write(root / "M01/Notes/readme.txt")
    return root


def test_torgo_is_split_by_session_and_shares_no_prompt(tmp_path, caplog):
    root = torgo(tmp_path / "TORGO")
    assert find_torgo(tmp_path) == root
    found = prepare_torgo(root)
    male = [each for each in found if each.speaker == "M01"]
    assert apart(male, lambda each: each.id.split("-")[1])
    assert apart(found, lambda each: (each.speaker, each.text.lower()))
    assert by_id(found)["F01-Session1-0001"].text == "alpha"
    assert len([each for each in found if each.speaker == "F01"]) == len(ALPHABET)
    assert {each.speaker for each in found} == {"F01", "M01", "MC01"}
    for said in (
        "skipped 6, prompts of no words",
        "skipped 1, prompts without a recording by the head",
        "skipped 1, recordings without a prompt",
        "to adapt M01 on, but prompts of the test: M01-Session",
    ):
        assert said in caplog.text
    every = prepare_torgo(root, shared_prompts=True)
    assert len([each for each in every if each.speaker == "M01"]) == 24 > len(male)


def test_torgo_microphones(tmp_path):
    root = torgo(tmp_path)
    found = prepare_torgo(root, microphone="array")
    assert {each.audio.parent.name for each in found} == {"wav_arrayMic"}
    with pytest.raises(ValueError, match="head, array"):
        prepare_torgo(root, microphone="headset")


# UASpeech

WORDS = {"D1": "one", "LA": "alpha", "C1": "command", "CW1": "the"}


def uaspeech(root: Path, audio: str = "audio/original") -> Path:
    for speaker in ("F02", "CM01"):
        labels = ["#!MLF!#"]
        within = f"{audio}/control" if audio == "audio" and speaker == "CM01" else audio
        for block in ("B1", "B2", "B3"):
            for word, text in {**WORDS, "UW1": f"naturalization{block[1]}"}.items():
                for microphone in ("M3", "M5"):
                    name = f"{speaker}_{block}_{word}_{microphone}"
                    write(root / within / speaker / f"{name}.wav")
                    labels += [f'"*/{name}.lab"', text.upper(), "."]
        write(root / f"mlf/{speaker}/{speaker}_word.mlf", "\r\n".join(labels))
    return root


@pytest.mark.parametrize("audio", ["audio/original", "audio"])
def test_uaspeech_is_split_by_block(tmp_path, audio):
    root = uaspeech(tmp_path / "UASpeech", audio)
    assert find_uaspeech(tmp_path) == root
    found = prepare_uaspeech(root)
    assert len(found) == 2 * 15
    assert by_id(found)["F02_B3_UW1"].text == "NATURALIZATION3"
    blocks = sides(found, lambda each: each.id.split("_")[1])
    assert blocks == {"B1": {"adapt"}, "B2": {"test"}, "B3": {"adapt"}}
    turned = sides(prepare_uaspeech(root, test_blocks=["B3"]), lambda each: each.id.split("_")[1])
    assert turned["B3"] == {"test"}
    with pytest.raises(ValueError, match="found 'B4'"):
        prepare_uaspeech(root, test_blocks=["B4"])


def test_uaspeech_word_lists(tmp_path):
    root = uaspeech(tmp_path)
    rows = [f"{text},{word}" for word, text in WORDS.items()]
    rows += [f"uncommon{n},B{n}_UW1" for n in (1, 2, 3)]
    words = write(root / "words.csv", "\ufeffWORD,FILE NAME\r\n" + "\r\n".join(rows))
    found = by_id(prepare_uaspeech(root, wordlist=words))
    assert (found["F02_B2_UW1"].text, found["F02_B2_CW1"].text) == ("uncommon2", "the")
    write(words, "WORD,FILE NAME\none,D1\n")
    missing = root / "audio/original/CM01/CM01_B1_C1_M5.wav"
    assert f"found none for {missing}" in refusal(prepare_uaspeech, root, wordlist=words)
    assert "expected the columns WORD and FILE NAME, found none" in refusal(
        prepare_uaspeech, root, wordlist=write(root / "empty.csv")
    )
    assert "save its sheet Word_filename as CSV" in refusal(
        prepare_uaspeech, root, wordlist=root / "speaker_wordlist.xls"
    )


def test_uaspeech_names_what_is_wrong(tmp_path):
    root = uaspeech(tmp_path)
    assert "expected the variant 'normalized', found original" in refusal(
        prepare_uaspeech, root, variant="normalized"
    )
    labels = root / "mlf/F02/F02_word.mlf"
    good = labels.read_text()
    write(labels, good.replace("F02_B1_D1_M5", "F02_B1_D1_M9"))
    assert "F02_B1_D1_M5.wav; add it" in refusal(prepare_uaspeech, root)
    write(labels, "F02_B1_D1_M5 ONE\n")
    assert f"{labels}, line 1: expected a name like" in refusal(prepare_uaspeech, root)
    labels.unlink()
    assert f"{labels}: expected this file" in refusal(prepare_uaspeech, root)
    write(labels, good)
    odd = write(root / "audio/original/F02/F02_B1_M5.wav")
    assert f"{odd}: expected a name like F02_B1_CW1_M5.wav" in refusal(prepare_uaspeech, root)


# Speech Commands


def test_speech_commands_is_split_by_word(tmp_path, caplog):
    root = tmp_path / "speech_commands_v0.02"
    for word in ALPHABET:
        for number in range(2):
            write(root / word / f"0a7c2a8d_nohash_{number}.wav")
    write(root / "yes/1b88bf70_nohash_0.wav")
    write(root / "_background_noise_/running_tap.wav")
    write(root / "LICENSE")
    assert find_speech_commands(tmp_path) == root
    found = prepare_speech_commands(root)
    assert {each.speaker for each in found} == {"0a7c2a8d"}
    assert len(found) == 24
    assert by_id(found)["0a7c2a8d-golf-1"].text == "golf"
    assert apart(found, lambda each: each.text)
    assert [each.split for each in found].count("test") == 12
    assert "of a single word: 1b88bf70" in caplog.text
    odd = write(root / "yes/noise.wav")
    assert f"{odd}: expected a name like 0a7c2a8d_nohash_0.wav" in refusal(
        prepare_speech_commands, root
    )


# VoxPopuli


def voxpopuli(root: Path) -> Path:
    """Speaker 7 on three days, speaker 8 on one; nobody and no words as there are in the corpus."""
    folder = root / "transcribed_data/de"
    rows = [
        (f"201{d}0702-0900-PLENARY-3-de_201{d}0702-10:15:3{n}_{n}", f"rede  {d} {n}", "7")
        for d in range(3)
        for n in range(4)
    ]
    rows += [(f"20120101-0900-PLENARY-1-de_{n}", f"wort {n}", "8") for n in range(4)]
    rows += [("20120101-0900-PLENARY-2-de_0", "niemand", "None")]
    rows += [("20120101-0900-PLENARY-2-de_1", "", "8")]
    lines = [f"{i}\tRAW {t}\t{t}\t{s}\ttest\tfemale" for i, t, s in rows]
    header = "id\traw_text\tnormalized_text\tspeaker_id\tsplit\tgender"
    write(folder / "asr_test.tsv", "\n".join([header, *lines]))
    write(folder / "asr_dev.tsv", header + "\n")
    for identity, _, _ in rows:
        write(folder / identity[:4] / f"{identity}.ogg")
    return root


def test_voxpopuli_is_split_by_day_and_keeps_the_language(tmp_path, caplog):
    root = voxpopuli(tmp_path / "voxpopuli")
    assert find_voxpopuli(tmp_path) == root
    found = prepare_voxpopuli(root, min_utterances=4)
    assert len(found) == 16
    assert {each.speaker for each in found} == {"de/7", "de/8"}
    assert all(each.id.startswith("de/201") for each in found)
    assert found[0].text == "rede 0 0"
    assert apart([e for e in found if e.speaker == "de/7"], lambda each: each.id[:11])
    eight = [each.split for each in found if each.speaker == "de/8"]
    assert eight == ["adapt"] * 2 + ["test"] * 2
    assert "skipped 1, no known speaker" in caplog.text
    assert "skipped 1, no transcript" in caplog.text
    few = prepare_voxpopuli(root, min_utterances=5)
    assert {each.speaker for each in few} == {"de/7"}


def test_voxpopuli_names_what_is_wrong(tmp_path):
    root = voxpopuli(tmp_path)
    assert "expected the language 'fr', found de" in refusal(prepare_voxpopuli, root, language="fr")
    assert "asr_train.tsv: expected this file" in refusal(prepare_voxpopuli, root, parts=["train"])
    table = root / "transcribed_data/de/asr_test.tsv"
    write(table, table.read_text().replace("20120101-0900-PLENARY-1-de_2", "../../secret"))
    assert "expected an id that begins with a day" in refusal(prepare_voxpopuli, root)


# All of them


@pytest.mark.parametrize(
    ("find", "says"),
    [
        (find_librispeech, "https://www.openslr.org/12"),
        (find_speechocean762, "https://www.openslr.org/101"),
        (find_fsdd, "git clone"),
        (find_common_voice, "accept the terms"),
        (find_l2_arctic, "accept the licence"),
        (find_torgo, "read the terms"),
        (find_uaspeech, "accept its terms"),
        (find_vctk, "call download_vctk"),
        (find_speech_commands, "call download_speech_commands"),
        (find_voxpopuli, "python -m voxpopuli.get_asr_data"),
    ],
)
def test_a_corpus_that_is_not_there_says_how_to_get_it(tmp_path, monkeypatch, find, says):
    monkeypatch.delenv(layout.DATA_VARIABLE, raising=False)
    for given in (None, tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CorpusNotFound) as caught:
            find(given)
        assert says in str(caught.value)
        assert given is None or str(given) in str(caught.value)
    monkeypatch.setenv(layout.DATA_VARIABLE, str(tmp_path))
    with pytest.raises(CorpusNotFound, match="found none in"):
        find()


def test_a_corpus_is_found_below_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv(layout.DATA_VARIABLE, str(tmp_path))
    root = librispeech(tmp_path / "LibriSpeech")
    assert find_librispeech() == root
    root = torgo(tmp_path / "TORGO")
    assert find_torgo() == root
    other = librispeech(tmp_path / "elsewhere")
    assert find_librispeech(other) == other


def test_nothing_to_read_is_an_error(tmp_path):
    (tmp_path / "audio").mkdir()
    (tmp_path / "test-other").mkdir()
    for prepare in (prepare_librispeech, prepare_uaspeech, prepare_l2_arctic, prepare_torgo):
        assert f"{tmp_path}: expected utterances, found none" in refusal(prepare, tmp_path)
