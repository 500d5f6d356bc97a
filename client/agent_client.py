"""The relay's end of the agent's socket. It imports nothing that is slow to start."""

from __future__ import annotations

from pathlib import Path

import grpc

from client.agent_pb2_grpc import SiteAgentStub
from client.agent_wire import PART_BYTES, Limits, parts_of, read_body, read_opening
from common.errors import AgentError, DecodeError
from common.messages import Envelope

OPTIONS = (
    ("grpc.max_receive_message_length", PART_BYTES),
    ("grpc.max_send_message_length", PART_BYTES),
    # A proxy of the environment is for the network; the socket is none of its business.
    ("grpc.enable_http_proxy", 0),
)


def ask_agent(socket: Path, request: Envelope, *, timeout: float | None = None) -> Envelope:
    """Hand a request to the agent and return what it answers.

    Args:
        socket: The agent's socket.
        request: The server's request.
        timeout: Seconds after which nobody waits for the answer any more; None waits as long as it takes.

    Raises:
        AgentError: The agent is not there, does not take this user's connections, or went away.
        DecodeError: The agent is of another version, or answers what does not decode.
    """
    with grpc.insecure_channel(f"unix:{socket}", options=OPTIONS) as channel:
        try:
            replies = SiteAgentStub(channel).Answer(parts_of(request), timeout=timeout)
            return read_body(read_opening(replies, Limits()), replies)
        except grpc.RpcError as error:
            raise _translated(error, socket) from None


def _translated(error: grpc.RpcError, socket: Path) -> AgentError | DecodeError:
    """Return gRPC's error as one of ours; its text may hold anything and is left out."""
    status = error.code()
    if status is grpc.StatusCode.INVALID_ARGUMENT:
        return DecodeError("The agent could not read what the server sent; are both of the same version?")
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        return AgentError("The agent was still at work when the server's deadline had passed.")
    if status is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return AgentError("The agent has more requests waiting than it takes.")
    if socket.exists():
        why = "the agent has ended, is stopping, or does not take connections of this user (see its log)"
    else:
        why = "there is no such socket; start the agent with `fedward-site run`"
    return AgentError(f"{socket}: the agent did not answer ({status.name}): {why}.")
