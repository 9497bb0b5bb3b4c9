"""Models on the Hugging Face Hub: fetching the files that are needed, and uploading a folder.

What was fetched lies in the cache of huggingface_hub, which all programs of a user share, one folder for each commit.
Works with huggingface_hub 0.34 to 2.x.
"""

from __future__ import annotations

from pathlib import Path

from vw2_robot.checkpoint import DLDM_PART, INFERENCE_FILES
from vw2_robot.errors import InputError

WRITTEN = ("*.json", "*.safetensors")
"""files that an upload removes from the repository where the new folder no longer has them"""


def fetch(
    name: str,
    *,
    dldm: bool,
    revision: str | None = None,
    token: str | None = None,
    local_files_only: bool = False,
) -> Path:
    """Return the folder with the files of a policy on the Hub, fetched where they are not in the cache.

    Args:
        name: owner/name.
        dldm: with the dLDM of its codes, which acting does not need.
        revision: a branch, tag or commit; None: the main branch.
        token: for private models; None: that of the user's login, if there is one.
        local_files_only: read the cache alone.

    Raises:
        InputError: no such model or revision, no right to read it, or no network and nothing in the cache.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                token=token,
                local_files_only=local_files_only,
                allow_patterns=[*INFERENCE_FILES, *([f"{DLDM_PART}/*"] if dldm else [])],
            )
        )
    except (HfHubHTTPError, EntryNotFoundError, HFValidationError) as error:
        raise InputError(
            f"{name} is neither a folder here nor a model on the Hugging Face Hub ({_first_line(error)}); a private "
            "one needs a token, and local_files_only one that was fetched before"
        ) from error


def upload(
    folder: Path,
    name: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Upload a folder in one commit, and return the page of that commit.

    Args:
        folder: all of its files are uploaded.
        name: owner/name; made if there is no such model.
        private: a new model can be read by its owner alone; None: as the owner has set it.
        revision: branch to commit to, made if missing; None: the main branch.
        token: with the right to write; None: that of the user's login.

    Raises:
        InputError: not logged in, no right to write there, or no such owner.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    api = HfApi(token=token)
    try:
        api.create_repo(name, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            revision=revision,
            commit_message="Upload policy with vw2_robot",
            delete_patterns=list(WRITTEN),
        )
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError) as error:
        raise InputError(
            f"{folder} cannot be uploaded to {name} ({_first_line(error)}); log in with `hf auth login`, or give a "
            "token that may write there"
        ) from error
    return str(commit.commit_url)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
