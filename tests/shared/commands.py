"""The commands as tests run them: exit code, output, and text that does not depend on its width."""

from fpspeech.cli import main


def run(capsys, *arguments) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    try:
        main([str(argument) for argument in arguments])
        code = 0
    except SystemExit as end:
        code = end.code or 0
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def squeezed(text: str) -> str:
    """Without the lines of tables and the breaks of lines."""
    return " ".join(text.replace("│", " ").split())
