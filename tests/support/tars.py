"""Tar files as tests put them into stores."""

import io
import tarfile
from collections.abc import Mapping


def tar_of(members: Mapping[str, bytes]) -> bytes:
    """A tar file with these members, by name and in their order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()
