"""A client of Steelyard's API for Python programs, with types. Standard library only.

>>> from steelyard import Client
>>> for service in Client().services()["services"]:
...     print(service["name"], service["state"])
"""

from agent.api.client import (
    ApiNotFoundError,
    ApiRefusedError,
    ApiUnconfirmedError,
    Server,
)
from agent.errors import AgentUnreachableError
from steelyard.client import Client

__all__ = [
    "AgentUnreachableError",
    "ApiNotFoundError",
    "ApiRefusedError",
    "ApiUnconfirmedError",
    "Client",
    "Server",
]
