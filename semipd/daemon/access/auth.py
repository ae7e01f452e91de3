"""Who a caller is and what they may use: keys over HTTP, user and group on the Unix socket."""

import asyncio
import logging
from pathlib import Path
from typing import Literal

from semipd.config.sections import AuthConfig
from semipd.core.errors import SemipdError
from semipd.daemon.access.callers import Caller
from semipd.daemon.access.keys import Keyring
from semipd.daemon.access.peers import group_id

log = logging.getLogger(__name__)

Access = Literal["probe", "public", "inference", "client", "operator"]
"""Who may use a route. `probe`: everybody, under any name of this server: load balancers, which tell
nothing. `public`: everybody. `inference` and `client`: every key, for tokens and for requests of its own; the
rest shows or changes what concerns everybody: operators only. Where no key is needed, everybody may look at
everything and ask for tokens."""

_SAFE_METHODS = frozenset({"GET", "HEAD"})


class Auth:
    """Raises SemipdError where a key file cannot be used, or the group is unknown."""

    def __init__(self, config: AuthConfig, socket_group: str = "") -> None:
        """`guests_gid`: the group whose members may use the Unix socket."""
        self.guests_gid = group_id(socket_group) if socket_group else None
        self._config = config
        self._keys, self._operations_keys = _load(config)

    @property
    def needs_key(self) -> bool:
        """Every caller over HTTP needs one."""
        return self._keys is not None

    @property
    def has_keys(self) -> bool:
        return self._keys is not None or self._operations_keys is not None

    def caller(self, authorization: str | None) -> Caller:
        """From the header's value. Raises SemipdError(`invalid_api_key`): no key where one is needed, or a
        key that is none of ours."""
        if not self.has_keys:
            return Caller(is_operator=True)
        if authorization is None:
            if self.needs_key:
                raise _unknown_key("This server needs an API key.")
            return Caller()
        scheme, _, key = authorization.strip().partition(" ")
        if scheme.lower() != "bearer":
            raise _unknown_key("The Authorization header is no Bearer key.")
        return self._holder(key.strip())

    def _holder(self, key: str) -> Caller:
        """Both rings are searched in any case: the time says nothing."""
        operator = self._operations_keys.name_of(key) if self._operations_keys else None
        name = self._keys.name_of(key) if self._keys else None
        if operator is not None:
            return Caller(f"operator:{operator}", is_operator=True)
        if name is not None:
            return Caller(name)
        raise _unknown_key("The API key is not known here.")

    def check(self, caller: Caller, access: Access, method: str, path: str) -> None:
        """Raises SemipdError(`operator_required`). `access`: what the route asks for."""
        if caller.is_operator or (self.needs_key and access in ("inference", "client")):
            return
        if not self.needs_key and (method in _SAFE_METHODS or access == "inference"):
            return
        hint = "Send it as Authorization: Bearer <key>, or use the daemon's Unix socket."
        if self._operations_keys is None:
            hint = "None is set (auth.operations_keys_file): use the daemon's Unix socket."
        raise SemipdError("operator_required", f"{method} {path} needs an operations key.", hint)

    async def reload(self) -> None:
        """Read the files again; if that fails, the keys in force stay, and the log says why."""
        if not self.has_keys:
            log.info("no key file is set: there is nothing to reload")
            return
        try:
            self._keys, self._operations_keys = await asyncio.to_thread(_load, self._config)
        except SemipdError as error:
            log.error("the key files were not reloaded, those read before stay in force: %s", error)
            return
        numbers = [len(ring) if ring else 0 for ring in (self._keys, self._operations_keys)]
        log.info("key files reloaded: %d API keys, %d operations keys", *numbers)


def _load(config: AuthConfig) -> tuple[Keyring | None, Keyring | None]:
    keys = Keyring.load(Path(config.keys_file), "auth.keys_file") if config.keys_file else None
    path = config.operations_keys_file
    operations = Keyring.load(Path(path), "auth.operations_keys_file") if path else None
    return keys, operations


def _unknown_key(message: str) -> SemipdError:
    return SemipdError("invalid_api_key", message, "Send it as Authorization: Bearer <key>.")
