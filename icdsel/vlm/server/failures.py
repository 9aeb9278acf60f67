"""How a request to a server fails, and what that means for sending it again."""


class ServerFailure(Exception):
    """A request has failed; the message says why, without the server's address."""


class Rejected(ServerFailure):
    """The server does not accept the request, and would not if it were sent again.

    Attributes:
        status: The HTTP status.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Unusable(ServerFailure):
    """The answer is not one: it has the wrong form, or says that something went wrong. Asking again gives the same."""


class Temporary(ServerFailure):
    """The server has failed on this request; it may succeed when it is sent again."""


class Unreachable(Temporary):
    """There is no connection to the server: others would fail too."""


class Busy(ServerFailure):
    """The server asks to wait.

    Attributes:
        seconds: How long; None if it does not say.
    """

    def __init__(self, message: str, seconds: float | None) -> None:
        super().__init__(message)
        self.seconds = seconds
