"""One job: what was asked for, what it reads, and how it is judged."""

from dataclasses import dataclass, replace

from compressor.config.job import JobConfig
from compressor.job.forecast import Forecast, forecast
from compressor.job.forecast.stages import Load
from compressor.job.hidden.checks import outlined
from compressor.job.judging import Judge
from compressor.job.micro_batches import remember
from compressor.job.needs import WantedResult, calibrates, decisive, judged, kept_states
from compressor.job.opening import open_stream
from compressor.job.own_text import chosen_texts
from compressor.job.reading import Texts, reading_notes, tell_texts
from compressor.job.recovery_data import agree_on_recovery, describe_data, read_recovery
from compressor.job.run import Run
from compressor.job.sharing import SHARED, check_parts, read_by
from compressor.measuring.guard import held_back
from compressor.model.checkpoint import Checkpoint
from compressor.model.source import Source
from compressor.model.stream import BlockStream
from compressor.recovery.data import RecoveryData
from compressor.repairing.folding import check_held_back
from compressor.repairing.streaming import check_text
from compressor.text.tokens import TokenSet


@dataclass(frozen=True)
class Job:
    """config: with nothing left open. wanted: the results of a cut. texts, data: what is calibrated and
    measured on, and what recovery trains on. stream: of the checkpoint. foreseen: what it will take.
    depth: where blocks are dropped, how that came about; the checkpoint is then what is left.
    """

    config: JobConfig
    checkpoint: Source
    run: Run
    wanted: list[WantedResult]
    texts: Texts
    data: RecoveryData | None
    stream: BlockStream
    judge: Judge | None = None
    foreseen: Forecast | None = None
    depth: dict | None = None

    @property
    def calibration(self) -> TokenSet | None:
        return self.texts.calibration

    @property
    def evaluation(self) -> TokenSet | None:
        return self.texts.evaluation

    @property
    def notes(self) -> list[str]:
        """Sentences about what was read otherwise than it stands there, or than it was asked for, and
        about a text that does not suit the source, once that is measured.
        """
        read = (self.calibration, self.evaluation, self.data)
        notes = [*reading_notes(self.config.text, self.checkpoint, *read), *self.texts.notes]
        return notes + (self.judge.notes if self.judge else [])


def begin(config: JobConfig, checkpoint: Checkpoint, run: Run, wanted: list[WantedResult]) -> Job:
    """Read the texts, open the stream, and say what the job will take."""
    if run.ranks.world > 1:
        run.lines.fact("ranks", f"{run.ranks.world}: {SHARED}")
    config, texts = open_texts(config, checkpoint, run)
    data = None
    if config.cuts:
        data = read_recovery(
            config.recovery, config.text, config.runtime.seed, checkpoint, texts.training
        )
    used = (texts.calibration, texts.evaluation)
    run.journal.agree("settings", decisive(groups_of(config), checkpoint, *used))
    if config.cuts:
        agree_on_recovery(config.recovery, data, run.work, run.journal)
    taught = data if config.recovery.taught else None
    states = kept_states(config, checkpoint.blocks)
    stream = open_stream(config.runtime, checkpoint, run.work, states, *used, taught)
    remember(run, stream)
    tell_texts(run.lines, config.text, checkpoint, calibration=used[0], evaluation=used[1])
    if data is not None:
        run.lines.fact("recovery", describe_data(data.protocol))
    load = Load(
        config, outlined(config.plan, checkpoint, config.quantization.columns), *used, data, wanted
    )
    foreseen = forecast(load, stream)
    run.lines.forecast(foreseen)
    judge = Judge(run, config.runtime, stream, texts.evaluation)
    return Job(config, checkpoint, run, wanted, texts, data, stream, judge, foreseen)


def begin_scoring(config: JobConfig, checkpoint: Checkpoint, run: Run) -> Job:
    """The same of a job that ends with the scores: nothing is measured."""
    config, texts = open_texts(config, checkpoint, run)
    agreed = decisive(groups_of(config), checkpoint, texts.calibration)
    run.journal.agree("settings", agreed)
    states = kept_states(config, checkpoint.blocks)
    stream = open_stream(config.runtime, checkpoint, run.work, states, texts.calibration)
    remember(run, stream)
    return Job(config, checkpoint, run, [], texts, None, stream)


def open_texts(config: JobConfig, checkpoint: Checkpoint, run: Run) -> tuple[JobConfig, Texts]:
    """The config with the text to calibrate on, and what `read_texts` gives; InputError where that is
    too little for what is asked.
    """
    text, texts = chosen_texts(config.text, checkpoint, config.runtime, run, calibrates(config))
    config = replace(config, text=text)
    if texts.calibration is None and texts.evaluation is None and config.runtime.verify:
        checkpoint.tokenizer()  # the proof will need one
    if run.ranks.world > 1 and texts.calibration is not None:
        channels = checkpoint.units["ffn"]
        passes = read_by(texts.calibration, config.score, channels) if config.cuts else []
        check_parts(passes or [texts.calibration], run.ranks)
    if config.cuts and texts.calibration is not None:
        check_text(config.repair.kind, texts.calibration)
        if config.plan.drop_blocks is not None and config.plan.fold:
            check_held_back(texts.calibration)
        if judged(config):
            held_back(texts.calibration)
    return config, texts


def groups_of(config: JobConfig) -> list:
    """What decides the result of a job; recovery is agreed on by itself."""
    if config.sparse is not None:
        return [config.text, config.sparse, config.quantization, config.runtime]
    cut = [config.score, config.plan, config.repair, config.write]
    return [config.text, *cut, config.quantization, config.runtime]
