"""Defines the error tree. Every error says what is wrong, where, and what to do about it."""

from __future__ import annotations


class SteelyardError(Exception):
    """Root of all errors that Steelyard raises on purpose.

    ``message`` says what is wrong, ``where`` names the place (a file and line, an
    interface, a path), and ``remedy`` says what the user can do about it.
    """

    def __init__(self, message: str, *, where: str = "", remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.remedy = remedy

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}\n  remedy: {self.remedy}" if self.remedy else text


class ConfigError(SteelyardError):
    """A configuration, or a change to it, that cannot be accepted; nothing was changed.

    ``problems`` holds every problem found, this one first.
    """

    def __init__(
        self,
        message: str,
        *,
        where: str = "",
        remedy: str = "",
        problems: tuple[ConfigError, ...] = (),
    ) -> None:
        super().__init__(message, where=where, remedy=remedy)
        self.problems = problems or (self,)


class NotFoundError(ConfigError):
    """A service or backend that was named does not exist."""


class ConflictError(ConfigError):
    """A request conflicts with the current state: a name that is taken, or open flows."""


class UnconfirmedError(ConflictError):
    """A change that ends open flows, and so has to be confirmed."""


class DataplaneError(SteelyardError):
    """An operation on the kernel side failed: compile, load, attach, pin or a map access."""


class AbiMismatchError(DataplaneError):
    """The compiled program and the Python mirror disagree about a layout."""


class NetworkError(SteelyardError):
    """An interface, address, route or neighbour that cannot be used."""


class DiscoveryError(SteelyardError):
    """A source of backends gave no answer, or one that cannot be used; ``where`` is the source."""


class StoreError(SteelyardError):
    """The store of the fleet cannot be used now; ``where`` is the member that was asked last."""


class OvertakenError(StoreError):
    """Another balancer has changed the fleet first; nothing was changed here."""


class UnreadableError(StoreError):
    """A key of the fleet holds something that this release cannot read; the store answers."""


class UncertainError(StoreError):
    """A change was sent to the store, and it is not known whether it was written."""


class CompactedError(StoreError):
    """A watch begins before the oldest state that the store still has."""


class LeaseLostError(StoreError):
    """A lease has expired or was revoked, and the store has deleted the keys that it held."""


class RequestError(SteelyardError):
    """An invalid API request: its JSON, fields or parameters are wrong."""


class ForbiddenError(SteelyardError):
    """The caller's role does not allow the request."""


class AuditError(SteelyardError):
    """A change cannot be recorded in the audit log, and must not be made without that."""


class ListenError(SteelyardError):
    """The API's socket or the metrics address cannot be bound."""


class ApiError(SteelyardError):
    """The agent answered a request with an error."""


class AgentUnreachableError(ApiError):
    """No agent answers on the socket."""
