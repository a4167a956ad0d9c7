"""A result on its way to the hub, with its card."""

from pathlib import Path

from compressor.config.hub_names import WRITTEN
from compressor.errors import InputError, MachineError, failed, in_a_line
from compressor.job.hub import answered
from compressor.writing.record import RECORD


def push(folder: Path, name: str, private: bool) -> str:
    """Upload the folder of a result as the model `name`, made if it is not there; its address.

    InputError for what is no result, or a name that is none; MachineError where the hub does not answer.
    """
    from huggingface_hub import HfApi

    match = WRITTEN.fullmatch(name)
    if match is None or match[2]:
        raise InputError(f"{name!r} is no name of a model; write ORG/NAME.")
    for file in (RECORD, "README.md"):
        if not (folder / file).is_file():
            raise InputError(
                f"{folder} has no {file}, so it is no result of this program; give the folder that "
                "`compress` made (of several ratios, one of those in it)."
            )
    api = HfApi()
    try:
        address = api.create_repo(  # None: as the organisation has it
            name, private=private or None, exist_ok=True
        )
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Add a compressed model")
    except Exception as error:
        if failed(error):
            raise
        if answered(error) in (401, 403):
            raise InputError(
                f"The hub does not let you write {name}: log in with a token that may (hf auth login)."
            ) from error
        raise MachineError(
            f"{folder} could not be uploaded as {name} ({in_a_line(error).rstrip('.')}); run the same "
            "again."
        ) from error
    return str(address)
