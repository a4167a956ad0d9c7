"""llama.cpp by `compressor export`: what that would write of the folder, if anything."""

from compressor.analysis.inspection.loaders.answer import UNKNOWN, Answer, Facts, files
from compressor.analysis.inspection.loaders.gguf import SEEN
from compressor.errors import CompressorError
from compressor.model.checkpoint import Checkpoint
from compressor.writing.gguf.architectures import architecture_of
from compressor.writing.gguf.vocabulary import vocabulary_of

TARGET = "llama.cpp, by compressor export"


def exported(facts: Facts) -> Answer:
    if not facts.widths:
        return Answer(TARGET, None, UNKNOWN)
    if ambiguous := files(facts):
        return Answer(TARGET, False, ambiguous, SEEN)
    try:
        source = Checkpoint(facts.folder.path)
        architecture = architecture_of(source)
        notes = vocabulary_of(source.tokenizer(), source.vocabulary).notes
    except CompressorError as reason:
        return Answer(TARGET, False, str(reason), SEEN)
    alone = ", the language model alone" if facts.folder.wrapper else ""
    return Answer(TARGET, True, " ".join([f"as {architecture.name}{alone}.", *notes]), SEEN)
