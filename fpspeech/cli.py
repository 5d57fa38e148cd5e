"""The command line: thin commands over the library.

Results go to standard output, notes and progress to standard error. Exit codes: 0 done, 1 the
input or settings cannot be worked with, 2 wrong usage, 130 interrupted.
"""

# The library is imported inside the commands: torch takes seconds to load, --help should not.

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from fpspeech.default_methods import METHODS

if TYPE_CHECKING:
    from fpspeech.config import Config
    from fpspeech.corpora import Utterance
    from fpspeech.models import PretrainedModel, SpeechModel
    from fpspeech.personal import Personal

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,  # a traceback must not show what somebody said
    help="Personalizes speech recognition to one speaker by pruning: no transcripts, no "
    "backpropagation, nothing leaves the machine. Without --model and --audio, every command "
    "works on the demo that the repository carries (synthetic voices).",
)

Audio = Annotated[
    Path | None,
    typer.Option(
        "--audio",
        help="Recordings: a folder per speaker, a folder of files, or a manifest (JSONL or CSV "
        "with audio, speaker and optional id, text, split). Default: the demo.",
        show_default=False,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Base model: a folder in Hugging Face format or a Hub id such as "
        "facebook/wav2vec2-base-960h. Default: the demo's.",
        show_default=False,
    ),
]
Revision = Annotated[str | None, typer.Option(help="Revision of a Hub model.", show_default=False)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Language = Annotated[
    str, typer.Option(help="What is spoken (ISO 639 code): picks the text normaliser.")
]
RecipeFile = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        help="A recipe file (YAML), for images: which model, whose photos, how to prune.",
        show_default=False,
    ),
]
User = Annotated[
    str | None, typer.Option("--user", help="Whose photos of the recipe.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output folder.")]
Seed = Annotated[int, typer.Option(help="Seed of everything that draws.")]
Score = Annotated[
    str,
    typer.Option(
        help="How contribution is measured: obs (what a weight's removal costs when others make "
        "up for it), fine_pruning (|w|·E|x|), wanda, ria, magnitude, random."
    ),
]
Group = Annotated[
    str, typer.Option(help="Which weights compete: row, layer, global, or N:M such as 2:4.")
]
Update = Annotated[
    str,
    typer.Option(
        help="What the kept weights become: none (as they are), least_squares (those that best "
        "reproduce the dense outputs on this speaker), or, with the mask, what sparsegpt or alps "
        "makes of both. Written beside the mask as float16."
    ),
]
Ridge = Annotated[
    float, typer.Option(help="How strongly least_squares holds on to the old weights.")
]
Order = Annotated[
    str,
    typer.Option(
        help="How layers follow each other: independent (all from the dense model's inputs, the "
        "recordings run once) or sequential (each for the inputs that its pruned predecessors give "
        "it; the recordings run up to twice for every layer)."
    ),
]
Allocation = Annotated[
    str,
    typer.Option(
        help="How the sparsity is spread over the layers: uniform, owl (blocks with more outliers "
        "lose less), erk, sensitivity (parts whose pruning changes the outputs less lose more; "
        "listens again) or search (from owl on, part by part, what keeps the outputs of the whole; "
        "prunes and listens --search-budget times)."
    ),
]
Bias = Annotated[
    bool, typer.Option("--bias", help="Biases make up for what the pruned weights gave on average.")
]
Shrinkage = Annotated[
    str,
    typer.Option(
        help="How much of other people's statistics joins the speaker's: none, auto, or 0 to 1. "
        "Needs --generic."
    ),
]
Normalize = Annotated[
    str,
    typer.Option(
        help="Normalise the speaker's early features to other people's: none, search (where and "
        "how strongly without labels), or strengths such as features=1,layer0=0.5. Needs --generic."
    ),
]
Evolve = Annotated[
    bool,
    typer.Option(
        "--evolve",
        help="Tune the front end, without labels, until the model fits the words that the speaker "
        "keeps saying (CTC models; minutes to an hour, whatever the amount of audio).",
    ),
]
AdaptHead = Annotated[
    bool,
    typer.Option(
        "--adapt-head",
        help="Fit the output layer, without labels, to the words that the speaker keeps saying "
        "(CTC models; under a minute; nothing is changed where few words recur).",
    ),
]
RefitHead = Annotated[
    bool,
    typer.Option(
        help="Refit the output layer, behind the pruned layers, to what the dense model says "
        "(CTC models; two more passes over at most ten minutes of audio)."
    ),
]
FullCovariance = Annotated[
    bool,
    typer.Option("--full-covariance", help="Match whole covariances, not each feature's variance."),
]
SearchObjective = Annotated[
    str,
    typer.Option(
        help="What --normalize search lowers: entropy, or (CTC models) uncertainty, or words, the "
        "loss of the words that the speaker keeps saying."
    ),
]
GenericFile = Annotated[
    Path | None,
    typer.Option(
        "--generic",
        help="Numbers of other people for this base model, as `fpspeech generic` writes them. "
        "Default: generic.safetensors beside the model's weights, where it is.",
        show_default=False,
    ),
]
Exclude = Annotated[
    list[str],
    typer.Option("--exclude", help="Pattern of layer names to leave dense (repeatable)."),
]
Component = Annotated[
    list[str],
    typer.Option(
        "--component",
        metavar="NAME=SPARSITY",
        help="Sparsity of a part of the model, such as encoder.ffn=0.5 (repeatable).",
    ),
]
BatchSize = Annotated[
    int, typer.Option(help="Windows run together, where the checkpoint takes padded batches.")
]


@app.command()
def personalize(
    context: typer.Context,
    speaker: Annotated[
        str | None,
        typer.Option(help="Whose recordings to adapt to. Not needed where there is one speaker."),
    ] = None,
    audio: Audio = None,
    model: Model = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder to write. Default: personal/SPEAKER.", show_default=False),
    ] = None,
    sparsity: Annotated[
        str | None,
        typer.Option(
            help="Share of the weights to prune, or auto: the highest that held-out unlabeled "
            "recordings allow. Default: 0.7; of a Whisper 0.3, which makes more errors beyond.",
            metavar="SHARE|auto",
            show_default=False,
        ),
    ] = None,
    score: Score = "obs",
    group: Group = "row",
    cap: Annotated[
        float, typer.Option(help="Highest sparsity of one layer with --group global.")
    ] = 0.95,
    update: Update = "least_squares",
    ridge: Ridge = 0.01,
    order: Order = "independent",
    allocation: Allocation = "owl",
    bias: Bias = False,
    shrinkage: Shrinkage = "none",
    normalize: Normalize = "none",
    full_covariance: FullCovariance = False,
    search_budget: Annotated[
        int,
        typer.Option(help="Most evaluations of --normalize search, and of --allocation search."),
    ] = 24,
    search_objective: SearchObjective = "entropy",
    evolve: Evolve = False,
    adapt_head: AdaptHead = False,
    refit_head: RefitHead = True,
    generic: GenericFile = None,
    component: Component = [],
    exclude: Exclude = [],
    default_exclusions: Annotated[
        bool, typer.Option(help="Leave the first convolution and the output layer dense.")
    ] = True,
    hold_out: Annotated[
        float,
        typer.Option(
            help="Share of the recordings to hold back, for `evaluate`. The choice "
            "depends on their ids and the seed alone."
        ),
    ] = 0.0,
    window_seconds: Annotated[
        float | None,
        typer.Option(help="Longest piece of audio run at once.", show_default=False),
    ] = None,
    batch_size: BatchSize = 1,
    language: Language = "en",
    revision: Revision = None,
    device: Device = "auto",
    seed: Seed = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list layers and sizes, and listen to nothing.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    recipe: RecipeFile = None,
    user: User = None,
    output_prior: Annotated[
        str,
        typer.Option(
            help="With --recipe: em answers with the user's own share of each class and never "
            "with a class the user does not photograph (found without labels); none. Default: as "
            "the recipe says.",
            show_default=False,
        ),
    ] = "none",
) -> None:
    """Listen to one speaker's recordings and write a personal model.

    No transcript is read. The recordings stream through the base model once; the weights that
    contribute least to what this speaker activates are pruned. Recordings that cannot be used
    are skipped with a line each. Ctrl-C keeps what was heard: the same command goes on from it.

    With --recipe and --user it looks at a user's photos instead, and no label is read. What is
    given beside them (sparsity, score, group, cap, update, ridge, order, output prior,
    model) overrules the recipe.

    Example: fpspeech personalize --speaker anna --audio recordings/
    """
    if recipe is not None:
        from fpspeech.image_commands import personalize_user

        changes = _given(
            context, "sparsity", "score", "group", "cap", "update", "ridge", "order", "output_prior"
        )
        _refuse_others(context, "recipe user out model device dry_run overwrite as_json", *changes)
        if sparsity is not None:
            if sparsity == "auto":
                raise typer.BadParameter(
                    "auto listens to recordings, a recipe for images needs a share such as 0.7",
                    param_hint="--sparsity",
                )
            changes["sparsity"] = _share(sparsity, group)
        personalize_user(
            recipe,
            user,
            out,
            model=model,
            changes=changes,
            device=device,
            dry_run=dry_run,
            overwrite=overwrite,
            as_json=as_json,
        )
        return
    if user is not None:
        raise typer.BadParameter("goes with --recipe", param_hint="--user")
    if output_prior != "none":
        raise typer.BadParameter(
            "goes with --recipe, for images: it prunes classes, and speech is an open vocabulary",
            param_hint="--output-prior",
        )
    from fpspeech import console
    from fpspeech.config import Config
    from fpspeech.corpora import hold_out as hold_out_share
    from fpspeech.generic import find_generic
    from fpspeech.listening import Interrupted
    from fpspeech.output_folder import require_free
    from fpspeech.personalize_speech import personalize as run
    from fpspeech.personalize_speech import plan
    from fpspeech.pruning import PruningConfig

    automatic = sparsity == "auto"
    config = Config(
        pruning=PruningConfig(
            sparsity=0.0 if automatic else _share(sparsity, group),
            score=score,
            group=group,
            cap=cap,
            seed=seed,
            update=update,
            ridge=ridge,
            order=order,
            bias=bias,
            shrinkage=_number(shrinkage),
        ),
        exclude=tuple(exclude),
        components=tuple(_component(each) for each in component),
        default_exclusions=default_exclusions,
        window_seconds=window_seconds,
        batch_size=batch_size,
        language=language,
        normalize=normalize,
        full_covariance=full_covariance,
        search_budget=search_budget,
        search_objective=search_objective,
        evolve=evolve,
        adapt_head=adapt_head,
        refit_head=refit_head,
        allocation=allocation,
        automatic=automatic,
    )
    if dry_run:
        loaded = _load(model, revision, device, language)
        config = _at(config, sparsity, loaded)
        console.show_plan(loaded, plan(loaded, config), config, as_json)
        return
    utterances = _adaptation_set(audio, speaker)
    utterances, held = hold_out_share(utterances, hold_out, seed)
    folder = out or Path("personal") / utterances[0].speaker
    require_free(folder, overwrite)
    loaded = _load(model, revision, device, language)
    config = _at(config, sparsity, loaded)
    numbers = find_generic(loaded, generic)
    checkpoint = folder.parent / f".{folder.name}.statistics.safetensors"
    try:
        with (
            console.stop_on_interrupt() as stop,
            console.listening_progress("listening", _seconds(utterances), stop) as listener,
        ):
            personal = run(
                loaded,
                utterances,
                config,
                generic=numbers,
                checkpoint=checkpoint,
                listener=listener,
                say=lambda line: console.notes.print(line, highlight=False, soft_wrap=True),
            )
    except Interrupted as interrupted:
        console.notes.print(f"{interrupted}; run the same command again to go on")
        raise typer.Exit(130) from None
    personal.save(folder, overwrite=overwrite)
    checkpoint.unlink(missing_ok=True)
    following = ["fpspeech", "evaluate", str(folder)]
    following += ["--audio", str(audio)] if audio else []
    following += ["--model", model] if model else []
    console.show_personal(personal, folder, len(held), shlex.join(following), as_json)


@app.command()
def evaluate(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="A personal model folder.")],
    speaker: Annotated[
        str | None,
        typer.Option(help="Whose recordings to test on. Default: the one it was adapted to."),
    ] = None,
    audio: Audio = None,
    model: Model = None,
    language: Annotated[
        str | None,
        typer.Option(help="Language of the text normaliser. Default: as personalized."),
    ] = None,
    device: Device = "auto",
    seed: Seed = 0,
    as_json: AsJson = False,
    recipe: RecipeFile = None,
    user: User = None,
) -> None:
    """Measure the word error rate of the speaker, dense beside personal.

    Only transcribed recordings that were not used to adapt count; recordings are told apart by
    their content, not by their names. The interval is a 95 % bootstrap over recordings.

    With --recipe the personal model is one of images: dense and personal accuracy, each among all
    classes and among the user's.

    Example: fpspeech evaluate personal/anna --audio recordings/
    """
    if recipe is not None:
        from fpspeech.image_commands import evaluate_user

        _refuse_others(context, "recipe user folder model device seed as_json")
        evaluate_user(folder, recipe, user, model=model, device=device, seed=seed, as_json=as_json)
        return
    if user is not None:
        raise typer.BadParameter("goes with --recipe", param_hint="--user")
    from fpspeech import console
    from fpspeech.corpora import read_utterances
    from fpspeech.evaluate_speech import evaluate as run
    from fpspeech.evaluate_speech import find_speaker
    from fpspeech.evaluation import text_normalizer
    from fpspeech.personal import Personal

    personal = Personal.load(folder)
    if "photos" in personal.report:
        raise typer.BadParameter(
            "the personal model is one of images: say which photos", param_hint="--recipe"
        )
    normalizer = text_normalizer(language or personal.config.language)
    place = audio or _demo_audio()
    utterances = read_utterances(place, with_text=True, speaker=speaker)
    if len({utterance.speaker for utterance in utterances}) > 1:
        speaker = find_speaker(utterances, personal)
        if speaker is None:
            raise typer.BadParameter(
                f"{place} holds several speakers, and none of them with a recording this "
                "model was adapted on: say which one to test on",
                param_hint="--speaker",
            )
        utterances = [utterance for utterance in utterances if utterance.speaker == speaker]
    loaded = _load_base(personal, model, device)
    tested = [utterance for utterance in utterances if utterance.text is not None]
    with console.listening_progress("transcribing", 2 * _seconds(tested)) as listener:
        evaluation = run(loaded, personal, utterances, normalizer, seed=seed, listener=listener)
    console.show_evaluation(evaluation, personal, as_json)


@app.command()
def transcribe(
    audio: Annotated[list[Path], typer.Argument(help="Recordings (WAV, FLAC, OGG, MP3).")],
    personal: Annotated[
        Path | None,
        typer.Option(help="A personal model folder. Default: the dense base.", show_default=False),
    ] = None,
    model: Model = None,
    language: Language = "en",
    revision: Revision = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Print what a model hears, a line a recording; of any length.

    Example: fpspeech transcribe memo.wav --personal personal/anna
    """
    from contextlib import nullcontext

    from fpspeech import console
    from fpspeech.corpora import UnusableAudio, inspect_recording, read_windows
    from fpspeech.personal import Personal

    adapted = Personal.load(personal) if personal else None
    if adapted:
        loaded = _load_base(adapted, model, device)
    else:
        loaded = _load(model, revision, device, language)
    failed = 0
    with adapted.apply(loaded) if adapted else nullcontext():
        for path in audio:
            try:
                recording = inspect_recording(path)
            except UnusableAudio as error:
                console.notes.print(f"[yellow]skipped[/] {escape(str(error))}", soft_wrap=True)
                failed += 1
                continue
            windows = read_windows(
                recording, sampling_rate=loaded.sampling_rate, window_seconds=loaded.window_seconds
            )
            text = loaded.transcribe(windows).text
            if as_json:
                print(json.dumps({"audio": str(path), "text": text}, ensure_ascii=False))
            else:
                print(f"{path}\t{text}" if len(audio) > 1 else text)
    if failed:
        raise typer.Exit(1)


@app.command()
def speakers(audio: Audio = None, as_json: AsJson = False) -> None:
    """List who is in the recordings: utterances and minutes, from file headers.

    Example: fpspeech speakers --audio recordings/
    """
    from fpspeech import console
    from fpspeech.corpora import read_utterances, summarise_speakers

    place = audio or _demo_audio()
    console.show_speakers(summarise_speakers(read_utterances(place, with_text=True)), as_json)


@app.command()
def merge(
    folder: Annotated[Path, typer.Argument(help="A personal model folder.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    model: Model = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a stock Hugging Face folder that plain `from_pretrained` loads.

    The zeros are stored like other weights (float32), so the folder is as large as the base.

    Example: fpspeech merge personal/anna --out anna-model
    """
    from fpspeech import console, image_commands
    from fpspeech.models.registry import IMAGE
    from fpspeech.personal import Personal
    from fpspeech.personal import merge as run

    personal = Personal.load(folder)
    base: PretrainedModel
    if personal.base.family in IMAGE:
        base = image_commands.load_base(personal, model)
    else:
        base = _load_base(personal, model, "cpu")
    run(personal, base, out, overwrite=overwrite)
    console.notes.print(f"wrote {escape(str(out))}")


@app.command("generic")
def measure_generic_numbers(
    audio: Annotated[
        Path,
        typer.Option(
            help="Recordings of anybody but the users and the test speakers: a folder or a "
            "manifest. Transcripts are not read."
        ),
    ],
    out: Annotated[Path, typer.Option(help="File to write (.safetensors).")],
    model: Model = None,
    minutes: Annotated[
        float | None, typer.Option(help="Most audio to listen to.", show_default=False)
    ] = None,
    statistics: Annotated[
        bool,
        typer.Option(
            "--statistics",
            help="Count the layers' inputs too, for --score contrast and --shrinkage.",
        ),
    ] = False,
    products: Annotated[
        bool,
        typer.Option("--products", help="And their products: a file as large as a model."),
    ] = False,
    language: Language = "en",
    revision: Revision = None,
    device: Device = "auto",
    seed: Seed = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Write what a base model's features are like for other people: a small file of numbers.

    It is needed to normalise a speaker (`personalize --normalize`). It holds no audio, no
    transcript and no name. Speakers take turns, so that --minutes has something of everybody.

    Example: fpspeech generic --audio librispeech.jsonl --out generic.safetensors
    """
    from fpspeech import console
    from fpspeech.compare import at_most
    from fpspeech.config import Config
    from fpspeech.corpora import read_utterances
    from fpspeech.generic import in_turns, measure_generic
    from fpspeech.listening import Interrupted
    from fpspeech.output_folder import require_free_file
    from fpspeech.personalize_speech import select_layers_of
    from fpspeech.pruning import products_for

    if products and not statistics:
        raise typer.BadParameter("goes with --statistics", param_hint="--products")
    require_free_file(out, overwrite)
    utterances = at_most(in_turns(read_utterances(audio, with_text=False), seed), minutes)
    loaded = _load(model, revision, device, language)
    config = Config()
    layers = select_layers_of(loaded, config).layers if statistics else ()
    try:
        with (
            console.stop_on_interrupt() as stop,
            console.listening_progress("listening", _seconds(utterances), stop) as listener,
        ):
            found = measure_generic(
                loaded,
                utterances,
                layers,
                products=products_for(layers, config.pruning) if products else frozenset(),
                product_stride=config.pruning.product_stride,
                listener=listener,
            )
    except Interrupted as interrupted:
        console.notes.print(f"{interrupted}; nothing was written")
        raise typer.Exit(130) from None
    found.save(out)
    print(
        f"{found.speakers} speakers, {found.seconds / 60:.1f} minutes, "
        f"{out.stat().st_size / 1e6:.1f} MB in {out}"
    )


@app.command()
def compare(
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for table.md and table.json.", show_default=False),
    ] = None,
    speaker: Annotated[
        list[str], typer.Option("--speaker", help="Speaker (repeatable). Default: all.")
    ] = [],
    method: Annotated[
        list[str],
        typer.Option(
            "--method",
            help="A score and what goes with it: an update, an order, an allocation, bias, "
            "shrunk, normalized, evolved, head, refit, such as obs+least_squares+owl+refit; "
            "@another or @generic calibrates on other people (repeatable).",
        ),
    ] = list(METHODS),
    sparsity: Annotated[list[float], typer.Option("--sparsity", help="Sparsity (repeatable).")] = [
        0.3,
        0.5,
        0.7,
    ],
    audio: Audio = None,
    model: Model = None,
    group: Group = "row",
    ridge: Ridge = 0.01,
    exclude: Exclude = [],
    normalize: Annotated[
        str,
        typer.Option(help="What the word normalized says: search, or such as features=1."),
    ] = "search",
    full_covariance: FullCovariance = False,
    search_objective: SearchObjective = "entropy",
    generic: GenericFile = None,
    generic_audio: Annotated[
        Path | None,
        typer.Option(
            help="Recordings of other people for methods @generic: a folder or a manifest.",
            show_default=False,
        ),
    ] = None,
    baseline: Annotated[
        list[str],
        typer.Option(
            "--baseline",
            help="suta (adapts to every test recording) or lora (learns from the model's own "
            "transcripts of the recordings to adapt on), by backpropagation (repeatable).",
        ),
    ] = [],
    minutes: Annotated[
        float | None,
        typer.Option(help="Most audio of a speaker to listen to.", show_default=False),
    ] = None,
    forgetting: Annotated[
        int, typer.Option(help="Test recordings of other speakers to measure every mask on, too.")
    ] = 0,
    batch_size: BatchSize = 1,
    language: Language = "en",
    revision: Revision = None,
    device: Device = "auto",
    seed: Seed = 0,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Measure methods and controls at equal sparsity, speaker by speaker.

    Recordings marked `adapt` are listened to, those marked `test` are measured on. Each cell
    is a word error rate with its 95 % bootstrap interval.

    Example: fpspeech compare --method fine_pruning --method random --sparsity 0.5
    """
    from fpspeech import console
    from fpspeech.compare import compare_speakers
    from fpspeech.config import Config
    from fpspeech.corpora import read_utterances
    from fpspeech.evaluation import text_normalizer
    from fpspeech.generic import find_generic, in_turns
    from fpspeech.methods import config_of
    from fpspeech.output_folder import require_free
    from fpspeech.pruning import PruningConfig

    if out is not None:
        require_free(out, overwrite)
    config = Config(
        pruning=PruningConfig(group=group, seed=seed, ridge=ridge, sparsity=sparsity[0]),
        exclude=tuple(exclude),
        batch_size=batch_size,
        language=language,
        normalize=normalize,
        full_covariance=full_covariance,
        search_objective=search_objective,
    )
    for each in method:  # a typing error shows before the first minute is spent
        found = config_of(each, config)
        for amount in sparsity:
            replace(found.pruning, sparsity=amount)
    utterances = read_utterances(audio or _demo_audio(), with_text=True)
    others = read_utterances(generic_audio, with_text=False) if generic_audio else []
    loaded = _load(model, revision, device, language)
    rows = compare_speakers(
        loaded,
        utterances,
        speaker,
        config,
        method,
        sparsity,
        text_normalizer(language),
        generic=find_generic(loaded, generic),
        generic_recordings=in_turns(others, seed),
        baselines=baseline,
        minutes=minutes,
        forgetting=forgetting,
        progress=lambda name: console.notes.print(f"measuring {name}"),
    )
    console.show_comparison(rows, out, overwrite, as_json)


@app.command()
def prepare(
    corpus: Annotated[str, typer.Argument(help="Name of the corpus, such as librispeech.")],
    out: Annotated[Path, typer.Option(help="Manifest to write (.jsonl).")],
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Where the corpus is. Default: below $FPSPEECH_DATA.", show_default=False
        ),
    ] = None,
    option: Annotated[
        list[str],
        typer.Option(
            "--option",
            metavar="NAME=VALUE",
            help="An option of the corpus, such as language=de or test_share=0.3 (repeatable).",
        ),
    ] = [],
    download: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Download it to this folder where it is not found; resumes.",
            show_default=False,
        ),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Write the manifest of a published corpus: its recordings, split into adapt and test.

    The corpus `hub` is any speech dataset of the Hugging Face Hub, streamed; see
    recipes/fleurs/README.md.

    Example: fpspeech prepare librispeech --data-dir LibriSpeech --out manifest.jsonl
    """
    from fpspeech import console
    from fpspeech.recipe_commands import prepare_corpus

    title, summaries = prepare_corpus(
        corpus,
        out,
        data_dir,
        download,
        option,
        seed,
        say=lambda line: console.notes.print(escape(line), soft_wrap=True, highlight=False),
    )
    utterances = sum(summary.utterances for summary in summaries)
    minutes = sum(summary.seconds for summary in summaries) / 60
    print(
        f"{title}: {len(summaries)} speakers, {utterances} utterances, {minutes:.1f} minutes, "
        f"in {out}"
    )


@app.command("run")
def run_recipe_file(
    recipe: Annotated[Path, typer.Argument(help="A recipe (YAML), for speech or for photos.")],
    stage: Annotated[int, typer.Option(help="First stage.")] = 0,
    stop_stage: Annotated[int, typer.Option(help="Last stage.")] = 5,
    speaker: Annotated[
        list[str],
        typer.Option("--speaker", help="Speaker (repeatable). Default: as the recipe says."),
    ] = [],
    user: Annotated[
        list[str],
        typer.Option("--user", help="User of a recipe for photos (repeatable). Default: all."),
    ] = [],
    model: Annotated[
        str | None, typer.Option(help="Base model in the place of the recipe's.")
    ] = None,
    sparsity: Annotated[
        list[float],
        typer.Option("--sparsity", help="Sparsity (repeatable). Default: as the recipe says."),
    ] = [],
    data_dir: Annotated[Path | None, typer.Option(help="Where the corpus is.")] = None,
    exp: Annotated[Path | None, typer.Option(help="Folder to write.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")] = None,
) -> None:
    """Run a recipe: from a corpus to a table of word error rates, or of accuracies for photos.

    Stages: 0 data (and the base model, where the recipe trains one), 1 dense, 2 personalize,
    3 controls, 4 report, 5 push (only where the recipe names a repository). What is there already
    is passed over.

    Example: fpspeech run recipes/librispeech/librispeech.yaml --data-dir LibriSpeech
    """
    from transformers.utils import logging

    from fpspeech import console
    from fpspeech.recipe_commands import run_file

    overrides = {
        "speakers": speaker or None,
        "users": user or None,
        "model": model,
        "sparsity": sparsity or None,
        "data_dir": None if data_dir is None else str(data_dir),
        "exp": None if exp is None else str(exp),
        "device": device,
    }
    logging.disable_progress_bar()  # type: ignore[no-untyped-call] # of loading: a second
    table = run_file(
        recipe,
        stage,
        stop_stage,
        overrides,
        say=lambda line: console.notes.print(escape(line), soft_wrap=True, highlight=False),
    )
    if stop_stage >= 4 and table.exists():
        print(table.read_text(encoding="utf-8"), end="")


def _given(context: typer.Context, *names: str) -> dict[str, object]:
    """Those of the named options that stand on the command line."""
    sources = {name: context.get_parameter_source(name) for name in names}
    return {
        name: context.params[name]
        for name, source in sources.items()
        if source is not None and source.name == "COMMANDLINE"
    }


def _refuse_others(context: typer.Context, allowed: str, *more: str) -> None:
    """Usage error for an option on the command line that has no effect beside --recipe."""
    odd = sorted(_given(context, *context.params).keys() - {*allowed.split(), *more})
    if odd:
        raise typer.BadParameter(
            "has no effect with --recipe: the recipe says it",
            param_hint=f"--{odd[0].replace('_', '-')}",
        )


def _share(text: str | None, group: str) -> float:
    """What is given, else what is usual where the model's family is not known yet."""
    from fpspeech.config import default_sparsity

    if text is None:
        return default_sparsity(None, group)
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(
            f"expected a share such as 0.7, or auto; found {text!r}", param_hint="--sparsity"
        ) from None


def _at(config: Config, given: str | None, model: SpeechModel) -> Config:
    """The settings at the sparsity that is usual for the model's family, where none was given."""
    from fpspeech.config import default_sparsity

    if given is not None:
        return config
    pruning = replace(config.pruning, sparsity=default_sparsity(model.family, config.pruning.group))
    return replace(config, pruning=pruning)


def _number(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def _component(text: str) -> tuple[str, float]:
    name, _, sparsity = text.partition("=")
    try:
        return name, float(sparsity)
    except ValueError:
        raise typer.BadParameter(
            f"expected NAME=SPARSITY such as encoder.ffn=0.5, found {text!r}",
            param_hint="--component",
        ) from None


def _demo_audio() -> Path:
    from fpspeech.demo import demo_folder

    return demo_folder()


def _load(model: str | None, revision: str | None, device: str, language: str) -> SpeechModel:
    from transformers.utils import logging

    from fpspeech.demo import demo_model
    from fpspeech.models import load_speech_model

    logging.disable_progress_bar()  # type: ignore[no-untyped-call] # of loading: a second
    return load_speech_model(
        model or demo_model(), revision=revision, device=device, language=language
    )


def _load_base(personal: Personal, model: str | None, device: str) -> SpeechModel:
    """The base of a personal model: as given, else from the Hub, else the demo's if it is that."""
    from fpspeech.demo import DemoMissingError, demo_model
    from fpspeech.models import ModelError, find_model

    base = personal.base
    language = personal.config.language
    if model is not None:
        return _load(model, None, device, language)
    if base.revision is not None:
        return _load(base.id, base.revision, device, language)
    try:
        if find_model(demo_model()).sha256 == base.sha256:
            return _load(None, None, device, language)
    except (DemoMissingError, ModelError):
        pass
    raise typer.BadParameter(
        f"the personal model was made from a local base named {base.id!r}: say where it is",
        param_hint="--model",
    )


def _adaptation_set(audio: Path | None, speaker: str | None) -> list[Utterance]:
    """The recordings to adapt on, without transcripts; one speaker's."""
    from fpspeech.corpora import read_utterances

    place = audio or _demo_audio()
    utterances = read_utterances(place, with_text=False, speaker=speaker)
    names = sorted({utterance.speaker for utterance in utterances})
    if len(names) > 1:
        raise typer.BadParameter(
            f"{place} holds {len(names)} speakers ({', '.join(names[:8])}"
            f"{', ...' if len(names) > 8 else ''}): say which one",
            param_hint="--speaker",
        )
    marked = [utterance for utterance in utterances if utterance.split == "adapt"]
    return marked or [utterance for utterance in utterances if utterance.split != "test"]


def _seconds(utterances: list[Utterance]) -> float:
    from fpspeech.corpora import summarise_speakers

    return sum(summary.seconds for summary in summarise_speakers(utterances))


def main(arguments: list[str] | None = None) -> None:
    """The command `fpspeech`; errors that a person can mend are one message, not a traceback."""
    try:
        app(arguments)
    except ValueError as error:
        # What the library itself raises is meant for people; any other ValueError is a bug.
        if not type(error).__module__.startswith("fpspeech."):
            raise
        from fpspeech.console import notes

        notes.print(f"[red]error[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
