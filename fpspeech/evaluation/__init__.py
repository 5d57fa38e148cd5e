"""Measuring: text normalisers, word error rates, confidence intervals and tables."""

from fpspeech.evaluation.bootstrap import Interval, Paired, bootstrap_interval, paired_comparison
from fpspeech.evaluation.hallucination import Hallucinations, hallucinations
from fpspeech.evaluation.tables import (
    Cell,
    Row,
    csv_table,
    markdown_table,
    percentage,
    percentage_interval,
)
from fpspeech.evaluation.text import TextNormalizer, text_normalizer
from fpspeech.evaluation.wer import UtteranceErrors, WordErrors, word_errors

__all__ = [
    "Cell",
    "Hallucinations",
    "Interval",
    "Paired",
    "Row",
    "TextNormalizer",
    "UtteranceErrors",
    "WordErrors",
    "bootstrap_interval",
    "csv_table",
    "hallucinations",
    "markdown_table",
    "paired_comparison",
    "percentage",
    "percentage_interval",
    "text_normalizer",
    "word_errors",
]
