"""What the operating system lets this process have."""

import resource

FEW_FILES = 4096
"""Each connection needs a file descriptor; below that many, a busy daemon runs out."""


def raise_file_limit() -> str | None:
    """Raise the soft limit of open files to the hard one. Returns a note when that is low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError) as error:
            return f"the limit of open files stays at {soft}: {error}"
    if hard == resource.RLIM_INFINITY or hard >= FEW_FILES:
        return None
    return f"at most {hard} files may be open, so about {hard - 50} connections; raise `ulimit -Hn`"
