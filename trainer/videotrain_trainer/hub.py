"""Files of the Hugging Face hub behind hf:// URIs, through the hub's own client and its cache.

The client keeps what it fetched (HF_HOME), obeys HF_HUB_OFFLINE and HF_ENDPOINT, and reads the token of HF_TOKEN. A
file is fetched whole; after that it is a file like any other. A branch or tag means one commit for as long as a process
lives, so that what is read piece by piece is of one version.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from videotrain_api.resource.locations import HUB_FORM, HUB_SCHEME, HubPlace, hub_place
from videotrain_trainer.errors import ConfigError, DataError, ObjectMissing, StorageDenied, StorageUnavailable

log = logging.getLogger(__name__)

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_commits: dict[tuple[str, str, str | None], str] = {}
"""What kind, repository and revision mean in this process."""
_resolving: Final = threading.Lock()


class HubFile(NamedTuple):
    """A file of the hub, without its content."""

    uri: str
    size: int
    """Bytes."""
    tag: str
    """Changes with the content."""


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
    from huggingface_hub import constants, hf_hub_download, snapshot_download

    place = _place(uri)
    if not place.path:
        raise ObjectMissing(f"{uri}: a repository, not a file of one")
    with _told(uri):
        where: dict[str, Any] = {"repo_type": place.kind, "revision": _commit(place)}
        if not constants.is_offline_mode():
            return Path(hf_hub_download(place.repository, place.path, **where))
        # A folder that is in the cache tells what it has not; whoever looks for a file beside another needs that.
        found = Path(snapshot_download(place.repository, local_files_only=True, **where)) / place.path
    if not found.is_file():
        raise ObjectMissing(
            f"{uri}: not among the files of this repository that the cache has, and the hub is not to be asked "
            "(HF_HUB_OFFLINE)"
        )
    return found


def hub_files(uri: str) -> list[HubFile]:
    """All files below a folder of the hub, by name, none of them fetched; only cached ones if it is not to be asked.

    Raises:
        ObjectMissing: there is no such repository or revision.
        StorageDenied: it is gated or private, and the token does not open it.
        StorageUnavailable: the hub cannot be reached.
        ConfigError: another form than HUB_FORM.
        DataError: a name leads out of the folder.
    """
    from huggingface_hub import HfApi, RepoFile, constants, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    place = _place(uri)
    with _told(uri):
        where: dict[str, Any] = {"repo_type": place.kind, "revision": _commit(place)}
        if constants.is_offline_mode():
            root = Path(snapshot_download(place.repository, local_files_only=True, **where))
            below = (path for path in (root / place.path).rglob("*") if path.is_file())
            found = [(path.relative_to(root).as_posix(), path.stat().st_size, path.resolve().name) for path in below]
        else:
            try:
                tree = list(HfApi().list_repo_tree(place.repository, place.path or None, recursive=True, **where))
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError:
                tree = []  # no such folder
            found = [(entry.path, entry.size, entry.blob_id) for entry in tree if isinstance(entry, RepoFile)]
    outside = [name for name, _, _ in found if any(part in ("", ".", "..") for part in name.split("/"))]
    if outside:
        raise DataError(
            f"{uri}: the hub lists a file {outside[0]!r}, which may lead out of a folder that it is copied to"
        )
    return [HubFile(_uri(place, name), size, tag) for name, size, tag in sorted(found)]


def _commit(place: HubPlace) -> str:
    """The commit of a place's revision, asked for once; what the cache has for it if the hub does not answer."""
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, RepositoryNotFoundError, RevisionNotFoundError

    if place.revision and _COMMIT.fullmatch(place.revision):
        return place.revision
    key = (place.kind, place.repository, place.revision)
    where: dict[str, Any] = {"repo_type": place.kind, "revision": place.revision}
    with _resolving:
        if key in _commits:
            return _commits[key]
        commit = None
        if not constants.is_offline_mode():
            try:
                commit = HfApi().repo_info(place.repository, **where).sha
            except (RepositoryNotFoundError, RevisionNotFoundError):
                raise
            except (HfHubHTTPError, HTTPError, OSError) as error:
                log.warning(
                    "%s: the cache's version is taken, for the hub does not answer: %s", place.repository, error
                )
        if commit is None:
            commit = Path(snapshot_download(place.repository, local_files_only=True, **where)).name
        _commits[key] = commit
        return commit


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
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    place = _place(uri)
    kind = "--repo-type dataset " if place.kind == "dataset" else ""
    download = f"`hf download {kind}{place.repository} {place.path}` on a machine that reaches it".replace(" `", "`")
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
            f"asked (HF_HUB_OFFLINE). Pods reach no hub unless a network policy lets them: {download}, put the "
            "files into the bucket, and name them by s3://"
        ) from error
    except RepositoryNotFoundError as error:
        raise ObjectMissing(f"{uri}: the hub has no such repository, or a private one that needs HF_TOKEN") from error
    except (EntryNotFoundError, RevisionNotFoundError) as error:
        raise ObjectMissing(f"{uri}: the hub has no such file or revision") from error
    except (HfHubHTTPError, HTTPError, OSError) as error:
        raise StorageUnavailable(f"{uri}: the hub cannot be reached: {error}; {download}") from error
