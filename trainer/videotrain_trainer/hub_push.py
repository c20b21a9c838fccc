"""A folder to a repository of the Hugging Face hub, through the hub's own client."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from videotrain_api.resource.locations import HUB_TARGET_FORM, HubPlace, hub_target
from videotrain_trainer.errors import ConfigError, StorageDenied, StorageUnavailable


class Pushed(NamedTuple):
    """What came of a push."""

    url: str
    """Of the repository."""
    commit: str
    """40 hex digits."""


def push_folder(folder: Path, uri: str, *, private: bool = False, message: str = "Upload model") -> Pushed:
    """Upload a folder as one commit; the repository is made if it is missing, files of other names stay in it.

    Args:
        folder: with what is to be there, README.md included.
        uri: of a repository of models, in HUB_TARGET_FORM.
        private: whether a repository that is made is private.
        message: of the commit.

    Raises:
        ConfigError: another form, no such folder, or HF_HUB_OFFLINE is set.
        StorageDenied: there is no token, or it may not write there.
        StorageUnavailable: the hub cannot be reached.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    place = hub_target(uri)
    if place is None:
        raise ConfigError(f"--push {uri}: allowed: {HUB_TARGET_FORM}")
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no folder; what is to be pushed is written first")
    if constants.is_offline_mode():
        raise ConfigError(f"{uri}: HF_HUB_OFFLINE is set, so nothing is pushed; unset it, or {_by_hand(folder, place)}")
    api = HfApi()
    try:
        made = api.create_repo(place.repository, private=private, exist_ok=True)
        if place.revision is not None:
            api.create_branch(place.repository, branch=place.revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=place.repository, folder_path=folder, revision=place.revision, commit_message=message
        )
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise StorageDenied(
                f"{uri}: the hub refuses to take it ({status}): log in with a token that may write there (`hf auth "
                f"login`, or HF_TOKEN). What was to be pushed is in {folder}"
            ) from error
        raise StorageUnavailable(f"{uri}: the hub did not take it: {error}; {_by_hand(folder, place)}") from error
    except (HTTPError, OSError) as error:
        raise StorageUnavailable(
            f"{uri}: the hub cannot be reached: {error}. The folder {folder} is written; {_by_hand(folder, place)}"
        ) from error
    return Pushed(str(made), commit.oid)


def _by_hand(folder: Path, place: HubPlace) -> str:
    branch = f" --revision {place.revision}" if place.revision else ""
    return f"`hf upload {place.repository} {folder}{branch}` does it from a machine that reaches the hub"
