"""What a job reads before it works: its texts as tokens, and the stream they are fed to."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from compressor.config.choices import NO_EVALUATION
from compressor.config.text import OWN, TextConfig
from compressor.errors import InputError
from compressor.job.progress import Lines
from compressor.model.source import Source
from compressor.recovery.data import RecoveryData
from compressor.text.set_aside import SHARE, set_aside
from compressor.text.texts import Text, read_text
from compressor.text.tokens import TokenSet, check_ids, joined, tokenize

if TYPE_CHECKING:  # it takes seconds to import
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Texts:
    """What a job reads: sequences to score, repair and train on, others to measure results on, and the
    text that recovery may train on. notes: what a user should know of them.
    """

    calibration: TokenSet | None = None
    evaluation: TokenSet | None = None
    training: Text | None = None
    notes: list[str] = field(default_factory=list)


def read_texts(
    config: TextConfig, checkpoint: Source, calibrates: bool, own: Text | None = None
) -> Texts:
    """Calibration, if anything looks at activations (calibrates), and what results are measured on: the
    evaluation text, or by default the end of the calibration text, which is then read by nothing else.

    own: what the model wrote, if one of the texts is that.
    """

    def read(source: str) -> Text:
        if source != OWN:
            return read_text(source)
        if own is None:
            raise InputError(
                "The text 'own' is written by compress and by the stage score; here, write it first "
                "(compressor generate SOURCE own.jsonl), and give that file."
            )
        return own

    by_default = config.evaluation is None
    if not calibrates and config.evaluation == NO_EVALUATION:
        return Texts()
    tokenizer, limit = checkpoint.tokenizer(), longest(config, checkpoint)
    evaluation = read_evaluation(config, checkpoint, tokenizer)
    if not calibrates and not by_default:
        return Texts(evaluation=evaluation)
    text = read(config.named)
    most = config.calibration_tokens
    wanted = config.samples or max(1, most // limit)

    def sequences(text: Text) -> TokenSet:
        span = config.calibration_range
        return tokenize(text, tokenizer, limit, config.samples, span, most)

    rest, calibration, end = divided(text, sequences, tokenizer, limit, wanted)
    training = rest if by_default else text
    fewer = len(calibration.sequences) < wanted and calibration.tokens < most
    notes = []
    if by_default:
        evaluation = end or calibration.first(max(1, wanted // SHARE))
        notes = where_measured(text, calibration, end, wanted if fewer else None)
    elif fewer and end is not None:  # nothing has to be set aside
        calibration = sequences(text)
    for tokens in filter(None, (calibration, end)):
        check_ids(tokens.sequences, checkpoint.vocabulary)
    if not calibrates:
        return Texts(None, evaluation, training, notes)
    if config.calibration_also is not None:
        other = read(config.calibration_also)
        span = config.calibration_also_range
        also = tokenize(other, tokenizer, limit, None, span, calibration.tokens)
        check_ids(also.sequences, checkpoint.vocabulary)
        calibration = joined(calibration, also)
    return Texts(calibration, evaluation, training, notes)


def read_evaluation(
    config: TextConfig, checkpoint: Source, tokenizer: "PreTrainedTokenizerBase"
) -> TokenSet | None:
    """The text of --evaluation; None where none is given, or the word `none`."""
    if config.evaluation in (None, NO_EVALUATION):
        return None
    text, limit = read_text(config.evaluation), longest(config, checkpoint)
    tokens = tokenize(text, tokenizer, limit, None, config.evaluation_range)
    check_ids(tokens.sequences, checkpoint.vocabulary)
    return tokens


def longest(config: TextConfig, checkpoint: Source) -> int:
    """Tokens of a sequence, at most."""
    return min(config.length, checkpoint.positions or config.length)


def divided(
    text: Text,
    sequences: Callable[[Text], TokenSet],
    tokenizer: "PreTrainedTokenizerBase",
    limit: int,
    wanted: int,
) -> tuple[Text, TokenSet, TokenSet | None]:
    """What of a text may be trained on, its sequences, and those of the end that is set aside; None
    where the text is too short for both.
    """
    training, end = set_aside(text, tokenizer, limit, wanted)
    if end is not None:
        try:
            return training, sequences(training), tokenize(end, tokenizer, limit)
        except InputError:  # one of the two is too short, or outside of the range
            pass
    return text, sequences(text), None


def where_measured(
    text: Text, calibration: TokenSet, end: TokenSet | None, wanted: int | None
) -> list[str]:
    """A sentence if what results are measured on was not free to be taken.

    wanted: how many sequences were to calibrate, if there are fewer.
    """
    if end is None:
        return [
            f"The text {text.source!r} is too short to set a part of it aside, so perplexity is "
            "measured on sequences that were calibrated on, where a repaired model looks better than "
            "it is; give more text, or --evaluation TEXT."
        ]
    if wanted is None:
        return []
    taken, left = len(end.sequences), len(calibration.sequences)
    return [
        f"The text {text.source!r} has no sequences beside the {wanted} to calibrate on: {taken} of its "
        f"{taken + left} measure perplexity and do not calibrate; give more text, or --evaluation TEXT."
    ]


def tell_texts(
    lines: Lines, config: TextConfig, checkpoint: Source, **tokens: TokenSet | None
) -> None:
    """Say before the work begins what each text is, by its label, and where it was cut."""
    lines.texts(**tokens)
    protocols = [t.protocol for t in tokens.values() if t is not None]
    for note in position_notes(config, checkpoint, protocols):
        lines.fact("length", note)


def reading_notes(
    config: TextConfig, checkpoint: Source, *tokens: TokenSet | RecoveryData | None
) -> list[str]:
    """Sentences about what was read otherwise than it stands there, or than it was asked for."""
    protocols = [t.protocol for t in tokens if t is not None]
    protocols += [p["also"] for p in protocols if "also" in p]
    notes = [*checkpoint.notes, *position_notes(config, checkpoint, protocols)]
    for protocol in protocols:
        notes += count_notes(config, protocol) + replacement_notes(protocol)
    return list(dict.fromkeys(notes))


def position_notes(config: TextConfig, checkpoint: Source, protocols: list[dict]) -> list[str]:
    """Texts were cut because the model has fewer positions than --length."""
    positions = checkpoint.positions
    if not positions or config.length <= positions or not protocols:
        return []
    return [
        f"The model has {positions} positions, so texts were cut at {positions} tokens and not at "
        f"--length {config.length}."
    ]


def count_notes(config: TextConfig, protocol: dict) -> list[str]:
    """A text has fewer sequences than --samples asks for."""
    asked, read = config.samples, protocol["sequences"]
    if asked is None or protocol.get("asked") != asked or read >= asked:
        return []
    return [
        f"--samples asks for {asked} sequences, and {protocol['source']} gives {read}: these were used."
    ]


def replacement_notes(protocol: dict) -> list[str]:
    """A text holds what no text can."""
    replaced = protocol.get("replaced")
    if not replaced:
        return []
    return [
        f"{protocol['source']} holds halves of characters (lone surrogates), which no tokenizer reads: "
        f"{replaced['characters']} were read as U+FFFD ({replaced['first']} has the first)."
    ]
