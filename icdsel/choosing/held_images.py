"""Images that are not files, as files: encoders and engines read files."""

import hashlib
import os
import tempfile
from io import BytesIO
from pathlib import Path

from PIL import Image

from icdsel.artefacts.bundle.contents import digest_of_file
from icdsel.data.images import ImageError

ImageLike = str | Path | bytes | Image.Image
"""An image: its path, the content of its file, or a picture of Pillow."""


class HeldImages:
    """A folder of the images of queries, named by their content. It is removed with this object.

    Only this process's user may read it.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="icdsel-", ignore_cleanup_errors=True)

    def path_of(self, image: ImageLike) -> Path:
        """The file of an image; that of a path is the path itself.

        Raises:
            ImageError: The path does not exist, or the picture cannot be written.
        """
        if isinstance(image, str | Path):
            path = Path(image).expanduser()
            if not path.is_file():
                raise ImageError(f"{path} is missing" if not path.exists() else f"{path} is not a file")
            return path
        if not isinstance(image, bytes | Image.Image):
            raise ImageError(
                f"an image is a path, the content of a file, or a picture of Pillow, not {type(image).__name__}"
            )
        content = image if isinstance(image, bytes) else _png(image)
        path = Path(self._folder.name) / hashlib.sha256(content).hexdigest()
        if not path.exists():
            part = path.with_name(f"{path.name}.{os.urandom(8).hex()}")
            part.write_bytes(content)
            part.replace(path)  # another thread may be writing the same one
        return path

    def close(self) -> None:
        """Removes all files."""
        self._folder.cleanup()

    def named_for_users(self, message: str, path: Path) -> str:
        """A message about an image, without the path of a file that its user does not know."""
        return message.replace(str(path), "the image") if path.parent == Path(self._folder.name) else message

    def forget(self, path: Path) -> None:
        """Removes the file of an image that is no longer needed; other paths are left alone."""
        if path.parent == Path(self._folder.name):
            path.unlink(missing_ok=True)


def digest_of_image(path: Path) -> str:
    """The SHA-256 of an image's file.

    Raises:
        ImageError: It cannot be read.
    """
    try:
        return digest_of_file(path)
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}") from error


def _png(picture: Image.Image) -> bytes:
    buffer = BytesIO()
    try:
        picture.save(buffer, "PNG", compress_level=1)
    except (OSError, ValueError) as error:
        raise ImageError(f"the picture cannot be written as PNG: {error}") from error
    return buffer.getvalue()
