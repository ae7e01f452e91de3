"""The log file of a detached daemon: its standard error stream, which can be pointed at a new file."""

import logging
import os
from pathlib import Path

from semipd.system.safe_files import is_device, open_log

log = logging.getLogger(__name__)


class LogFile:
    """`path` is what the process was started with; a device is never opened again: /dev/stdout would then
    be another one."""

    def __init__(self, path: Path) -> None:
        self._path = None if is_device(path) else path.absolute()

    def reopen(self) -> bool:
        """Point standard error at the file that has the name now, and make it if there is none; whether that
        was done. If it cannot be, the file that is open stays in use and says why."""
        if self._path is None:
            log.info("the log goes to a device, which is not opened again")
            return False
        try:
            descriptor = open_log(self._path)
        except OSError as error:
            log.error("the log file %s was not opened again: %s", self._path, error.strerror)
            return False
        os.dup2(descriptor, 2)
        os.close(descriptor)
        log.info("the log file was opened again")
        return True
