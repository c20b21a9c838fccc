"""Files of the Hugging Face hub behind hf:// URIs, through the hub's own client and its cache.

The client keeps what it fetched (HF_HOME), obeys HF_HUB_OFFLINE and HF_ENDPOINT, and reads the token of HF_TOKEN. A file
is fetched whole; after that it is a file like any other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from videotrain_api.resource.locations import HUB_FORM, HUB_SCHEME, HubPlace, hub_place
from videotrain_trainer.errors import ConfigError, ObjectMissing, StorageDenied, StorageUnavailable


def is_hub(uri: str) -> bool:
    """Whether it is a place of the hub."""
    return uri.startswith(HUB_SCHEME)


def hub_file(uri: str) -> Path:
    """A file of the hub on this machine, fetched if it is not in the cache.

    Raises:
        ObjectMissing: the hub has no such file, or the cache has none and the hub is not to be asked.
        StorageDenied: the repository is gated or private, and the token does not open it.
        StorageUnavailable: the hub cannot be reached.
        ConfigError: another form than HUB_FORM.
    """
    from huggingface_hub import hf_hub_download

    place = _place(uri)
    if not place.path:
        raise ObjectMissing(f"{uri}: a repository, not a file of one")
    with _told(uri):
        found = hf_hub_download(place.repository, place.path, repo_type=place.kind, revision=place.revision)
    return Path(found)


def hub_files(uri: str) -> list[str]:
    """URIs of all files below a folder of the hub, sorted; of the cached ones alone if the hub is not to be asked.

    Raises:
        ObjectMissing: there is no such repository or revision.
        StorageDenied: it is gated or private, and the token does not open it.
        StorageUnavailable: the hub cannot be reached.
        ConfigError: another form than HUB_FORM.
    """
    from huggingface_hub import HfApi, constants, snapshot_download

    place = _place(uri)
    with _told(uri):
        if constants.is_offline_mode():
            root = Path(
                snapshot_download(
                    place.repository, repo_type=place.kind, revision=place.revision, local_files_only=True
                )
            )
            names = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
        else:
            names = HfApi().list_repo_files(place.repository, repo_type=place.kind, revision=place.revision)
    folder = PurePosixPath(place.path)
    inside = [name for name in names if not place.path or folder in PurePosixPath(name).parents]
    return [_uri(place, name) for name in sorted(inside)]


def _place(uri: str) -> HubPlace:
    place = hub_place(uri)
    if place is None:
        raise ConfigError(f"{uri}: allowed: {HUB_FORM}")
    return place


def _uri(place: HubPlace, name: str) -> str:
    kind = "datasets/" if place.kind == "dataset" else ""
    revision = f"@{place.revision}" if place.revision else ""
    return f"{HUB_SCHEME}{kind}{place.repository}{revision}/{name}"


@contextmanager
def _told(uri: str) -> Iterator[None]:
    """The client's errors as ours, with what to do."""
    from httpx import HTTPError
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    download = f"`hf download {uri.removeprefix(HUB_SCHEME).split('/')[0]}/...` on a machine that reaches it"
    try:
        yield
    except GatedRepoError as error:
        raise StorageDenied(
            f"{uri}: the repository is gated: accept its terms on the hub and give the pods a token that may read it "
            "(HF_TOKEN from a Secret, by spec.podTemplate)"
        ) from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        raise StorageUnavailable(
            f"{uri}: it is not in the cache of the hub's client here, and the hub cannot be reached or is not to be "
            f"asked (HF_HUB_OFFLINE). Pods reach no hub unless a network policy lets them: {download}, put the files "
            "into the bucket, and name them by s3://"
        ) from error
    except RepositoryNotFoundError as error:
        raise ObjectMissing(f"{uri}: the hub has no such repository, or a private one that needs HF_TOKEN") from error
    except (EntryNotFoundError, RevisionNotFoundError) as error:
        raise ObjectMissing(f"{uri}: the hub has no such file or revision") from error
    except (HfHubHTTPError, HTTPError, OSError) as error:
        raise StorageUnavailable(f"{uri}: the hub cannot be reached: {error}; {download}") from error
