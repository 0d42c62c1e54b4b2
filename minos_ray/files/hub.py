"""Files of data sets on the Hugging Face hub: `hf://datasets/ORG/NAME[@REVISION]/PATH/FILE`."""

import re

from minos_ray.errors import UserError

PREFIX = "hf://datasets/"
FORM = re.compile(r"hf://datasets/(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/]+))?/(?P<file>.+)")


def is_hub(path: str) -> bool:
    """Whether a path lies on the hub."""
    return path.startswith("hf://")


def download(path: str) -> str:
    """The local path of a file of the hub, from the hub's cache when it is there; UserError when it cannot be had."""
    match = FORM.fullmatch(path)
    if not match:
        raise UserError(f"'{path}' is not of the form {PREFIX}ORG/NAME[@REVISION]/FILE")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return hf_hub_download(match["repo"], match["file"], repo_type="dataset", revision=match["revision"])
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"'{path}' cannot be read from the hub: {type(error).__name__}: {reason}") from error
