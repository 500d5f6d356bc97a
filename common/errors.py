"""The exception tree of fedward, and the fixed codes that may leave a site.

    FedwardError                 anything fedward raises on purpose          exit 1
    ├── InputError               something the user gave is not usable       exit 2
    │   ├── ValidationError      a field's value is outside its range
    │   ├── PlanError            a plan, roster or site file
    │   ├── DataError            a file of records, with the line
    │   └── ModelError           a model folder or encoder name
    ├── RefusedError             a site declines what it was asked
    │   ├── PolicyError          the site's policy or approvals say no
    │   ├── LedgerError          the privacy ledger says no, or is not whole
    │   └── ProtocolRefused      a message breaks the secure-aggregation rules
    ├── AgentError               the agent of a site did not answer its relay
    ├── DecodeError              bytes from the wire that do not decode
    ├── AbortError               an attempt at secure aggregation ended early
    └── RoundError               a round could not be completed              exit 1

A message is one or more sentences that name the field or file, the value, what is allowed and what to
do. It never contains note text, a key, a share or an update. What a site reports to the server is the
class's `code` alone.
"""

from __future__ import annotations

from pathlib import Path


class FedwardError(Exception):
    """Base of every error that fedward raises on purpose.

    Attributes:
        code: The fixed word that may leave a site in place of the message.
        exit_code: The process exit code of a command that ends with this error.
    """

    code: str = "failed"
    exit_code: int = 1


class InputError(FedwardError):
    """Something the user gave cannot be used; nothing was written."""

    code = "bad-input"
    exit_code = 2


class ValidationError(InputError):
    """A field's value is outside its allowed range."""


class PlanError(InputError):
    """A plan, roster or site file is not usable."""


class DataError(InputError):
    """A file of records is not usable.

    Args:
        message: One sentence without clinical text.
        path: The file at fault.
        line: The 1-based line at fault, where one is known.
        reason: A fixed word of letters and hyphens for lists of what was left out; never text of a record.
    """

    code = "bad-data"

    def __init__(
        self,
        message: str,
        *,
        path: Path | str | None = None,
        line: int | None = None,
        reason: str = "bad-record",
    ) -> None:
        self.path = None if path is None else Path(path)
        self.line = line
        self.reason = reason
        super().__init__(f"{self.place}: {message}" if self.place else message)

    @property
    def place(self) -> str:
        """The file and, where one is known, the line; "" where no file is at fault."""
        if self.path is None:
            return ""
        return str(self.path) if self.line is None else f"{self.path}, line {self.line}"


class ModelError(InputError):
    """A model folder or encoder name cannot be opened."""

    code = "bad-model"


class RefusedError(FedwardError):
    """A site declines what it was asked to do; nothing was spent or sent."""

    code = "refused"


class PolicyError(RefusedError):
    """The site's own policy, or its list of approved plans, does not allow this."""

    code = "refused-policy"


class LedgerError(RefusedError):
    """The privacy ledger refuses the charge, or is not the ledger that was left."""

    code = "refused-ledger"


class ProtocolRefused(RefusedError):
    """A message breaks the rules of secure aggregation; the attempt is over for this site."""

    code = "refused-protocol"


class AgentError(FedwardError):
    """The agent of a site cannot be reached, or went away; asking again later may help."""

    code = "agent-unreachable"


class DecodeError(FedwardError):
    """Bytes from the wire do not decode to a message of this version."""

    code = "bad-message"


class AbortError(FedwardError):
    """An attempt at secure aggregation ended without a sum; a new attempt may follow."""

    code = "aborted"


class RoundError(FedwardError):
    """A round could not be completed; the run can be resumed."""

    code = "round-failed"
