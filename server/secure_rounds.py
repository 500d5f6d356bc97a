"""Secure aggregation as the round loop sees it: from trained sites to an opened sum, with retries.

Before `confirm`, a failed attempt is followed by another with fresh keys, which masks the same updates.
Once `confirm` was asked, sites refuse every further attempt of the round, so a sum that is lost then is
lost for good, and the run goes on with the next round.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import AbortError, FedwardError
from common.files import write_atomically
from common.messages import CONFIRM, SHARE_KEYS, TRAIN, UNMASK, UPLOAD, Envelope
from common.plan import Plan
from common.roster import Roster
from common.secagg_parameters import AttemptContext
from common.secure_plan import attempt_context, ring_layout, secure_parameters
from server.rounds import Conversation, RoundRequest, RoundSum, SumLostError
from server.secure_aggregation import OpenedSum, SecureAggregationServer

_log = logging.getLogger(__name__)


class SecureAggregator:
    """Opens the sum of a round's updates and nothing else.

    Args:
        conversation: Talks to the sites.
        roster: The members.
        parameters: Number of trained parameters.
        record: File that remembers the newest attempt, so that a resumed run does not repeat a number.
        threads: Threads for removing masks.
    """

    def __init__(
        self, conversation: Conversation, roster: Roster, *, parameters: int, record: Path, threads: int = 2
    ) -> None:
        self.conversation = conversation
        self.roster = roster
        self.record = record
        self.threads = threads
        self.plan: Plan = conversation.plan
        self.layout = ring_layout(self.plan, parameters=parameters, sites=len(roster))
        self._context: AttemptContext | None = None

    def train_header(self, request: RoundRequest) -> dict[str, Any]:
        """Open the round's next attempt and return its number and nonce.

        Raises:
            SumLostError: The plan's attempts for this round are used up.
        """
        attempt = self._last_attempt(request.server_round) + 1
        if attempt > self.plan.federation.attempts:
            raise SumLostError(f"Round {request.server_round} has used its {attempt - 1} attempts.")
        write_atomically(self.record, json.dumps({"round": request.server_round, "attempt": attempt}) + "\n")
        nonce = secrets.token_bytes(32)
        self._context = attempt_context(
            self.plan,
            self.layout,
            model_hash=request.model_hash,
            server_round=request.server_round,
            attempt=attempt,
            nonce=nonce,
        )
        return {"attempt": attempt, "nonce": nonce}

    def collect(self, request: RoundRequest, trained: Mapping[str, Envelope]) -> RoundSum:
        """Run attempts until one opens the sum.

        Raises:
            SumLostError: No attempt did; the round is over without a sum.
        """
        while True:
            context = self._open_context()
            server = SecureAggregationServer(
                roster=self.roster,
                parameters=secure_parameters(self.plan),
                layout=self.layout,
                context=context,
            )
            try:
                opened = self._attempt(server, request, trained)
            except AbortError as error:
                _log.warning("Round %d, attempt %d: %s", context.round, context.attempt, error)
                if server.confirming:
                    raise SumLostError(
                        f"Round {context.round} lost its sum after sites had confirmed."
                    ) from error
                trained = self._retrain(request, trained)
                continue
            return RoundSum(
                total=self.layout.decode(opened.vector), sites=opened.survivors, attempts=context.attempt
            )

    def _attempt(
        self, server: SecureAggregationServer, request: RoundRequest, trained: Mapping[str, Envelope]
    ) -> OpenedSum:
        """Run the exchanges of one attempt after `train`."""
        for site, reply in trained.items():
            _add_advert(server, site, reply)
        adverts = server.close_adverts()
        self._ask(
            SHARE_KEYS,
            sorted(trained),
            request,
            lambda site: {"adverts": adverts},
            lambda site, reply: server.add_shares(site, reply.payload("shares")),
        )
        deliveries = server.close_shares()
        self._ask(
            UPLOAD,
            sorted(deliveries),
            request,
            lambda site: {"delivery": deliveries[site]},
            lambda site, reply: server.add_upload(
                site, reply.payload("upload"), reply.vector("masked", np.uint32)
            ),
        )
        survivors = server.close_uploads()
        uploaded = [site for site in deliveries if site not in server.dropouts["upload"]]
        self._ask(
            CONFIRM,
            sorted(uploaded),
            request,
            lambda site: {"survivors": survivors},
            lambda site, reply: server.add_confirmation(site, reply.payload("confirmation")),
        )
        signatures = server.close_confirmations()
        confirmed = [site for site in uploaded if site not in server.dropouts["confirm"]]
        self._ask(
            UNMASK,
            sorted(confirmed),
            request,
            lambda site: {"signatures": signatures},
            lambda site, reply: server.add_unmask(site, reply.payload("shares")),
        )
        return server.finish(threads=self.threads)

    def _retrain(self, request: RoundRequest, trained: Mapping[str, Envelope]) -> dict[str, Envelope]:
        """Begin another attempt with the sites that have a finished update; nobody trains again."""
        header = self.train_header(request)
        again: dict[str, Envelope] = {}
        self._ask(TRAIN, sorted(trained), request, lambda site: header, again.__setitem__)
        return again

    def _ask(
        self,
        kind: str,
        sites: Sequence[str],
        request: RoundRequest,
        header: Callable[[str], Mapping[str, Any]],
        on_reply: Callable[[str, Envelope], None],
    ) -> None:
        """Run one exchange under the plan's deadline."""
        deadline = self.plan.federation.exchange_deadline
        self.conversation.ask(kind, sites, request, header=header, deadline=deadline, on_reply=on_reply)

    def _open_context(self) -> AttemptContext:
        if self._context is None:
            raise AbortError("No attempt was opened.")
        return self._context

    def _last_attempt(self, server_round: int) -> int:
        """Return the newest attempt of a round that was begun, here or before a crash."""
        if not self.record.exists():
            return 0
        kept = json.loads(self.record.read_text("utf-8"))
        return int(kept["attempt"]) if kept["round"] == server_round else 0


def _add_advert(server: SecureAggregationServer, site: str, reply: Envelope) -> None:
    """Take a site's advert; a site whose advert is not usable is left out of the attempt."""
    try:
        server.add_advert(site, reply.payload("advert"))
    except AbortError:
        raise
    except FedwardError as error:
        _log.warning("The advert of %s is left out: %s", site, error)
