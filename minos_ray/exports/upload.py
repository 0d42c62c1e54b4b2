"""A folder uploaded to the model hub, with the token in HF_TOKEN; what the hub refuses is one line."""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Literal

from minos_ray import __version__
from minos_ray.config.load import secret
from minos_ray.errors import UserError, WorkStopped
from minos_ray.observe.failure import cause

Kind = Literal["model", "dataset"]


def create_repo(name: str, kind: Kind, private: bool, update: bool) -> None:
    """Makes the repository NAMESPACE/NAME, so that the hub refuses it before anything is written.

    UserError when there is no token or one that may not do that, or when the repository exists and is not to be
    updated; WorkStopped when the hub does not answer.
    """
    if name.count("/") != 1:
        raise UserError(f"export: upload = '{name}' is not of the form NAMESPACE/NAME")
    token = secret("HF_TOKEN", "export: upload")
    from huggingface_hub import HfApi

    with hub_errors(name):
        HfApi(token=token).create_repo(name, repo_type=kind, private=private, exist_ok=update)


def upload_folder(folder: str, name: str, kind: Kind) -> str:
    """Uploads all files of a folder as one commit; returns the address of the repository."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    command = f"hf upload {name} {folder}" + (" --repo-type dataset" if kind == "dataset" else "")
    with hub_errors(name, f"; the folder is complete: {command}"):
        HfApi(token=secret("HF_TOKEN", "export: upload")).upload_folder(
            repo_id=name, folder_path=folder, repo_type=kind, commit_message=f"minos_ray {__version__}"
        )
    return f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name}"


@contextmanager
def hub_errors(name: str, remedy: str = "") -> Generator[None]:
    """UserError for what the user can change (offline mode, token, name, card), WorkStopped for a hub in trouble."""
    from huggingface_hub import errors

    try:
        yield
    except errors.OfflineModeIsEnabled as error:
        raise UserError("export: upload: HF_HUB_OFFLINE is set; unset it to reach the hub") from error
    except errors.HfHubHTTPError as error:
        code = error.response.status_code
        line = {
            401: "the hub does not accept the token in HF_TOKEN",
            403: f"the token in HF_TOKEN may not write to '{name}'",
            409: f"'{name}' is on the hub already; with update=true it gets a new commit",
        }.get(code, f"the hub refuses '{name}': {(error.server_message or str(error)).splitlines()[0]}")
        kind = WorkStopped if code == 429 or code >= 500 else UserError
        raise kind(f"export: upload: {line} ({code}){remedy}") from error
    except (errors.HTTPError, OSError) as error:
        # The library of Xet raises this one, and no other way is tried then.
        without = "; without Xet: HF_HUB_DISABLE_XET=1" if type(error) is ConnectionError else ""
        raise WorkStopped(f"export: upload: the hub does not answer ({cause(error)}){without}{remedy}") from error
    except ValueError as error:  # of the form of a name, or of the head of the card
        raise UserError(f"export: upload: {' '.join(str(error).split())}{remedy}") from error
