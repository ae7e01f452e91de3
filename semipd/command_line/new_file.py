"""A file for what is recorded: new, since what is recorded once may not come again."""

import os
from pathlib import Path

from semipd.core.errors import SemipdError
from semipd.system.safe_files import refuse_planted_links


def create_new(path: Path) -> int:
    """A descriptor to write to; the file is its owner's alone. Raises SemipdError: `file_exists`,
    `file_unwritable`."""
    try:
        refuse_planted_links(path.parent)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        message = f"{path} exists, and is not overwritten."
        raise SemipdError("file_exists", message, "Choose another name, or remove it first.") from error
    except OSError as error:
        message = f"{path} cannot be written ({error.strerror or error})."
        raise SemipdError("file_unwritable", message, "Choose another place.") from error
