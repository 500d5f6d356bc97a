"""Cost of secure aggregation: masks against the machine's own AES, everything against Flower's SecAgg+.

Times are processor seconds of this process, so that other users of the machine do not count; what is
compared is measured in turns, and each side's best turn counts. Flower's side calls the functions that
its `secaggplus_mod` calls (flwr 1.42), with its default ranges.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from flwr.common import ndarray_to_bytes
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    factor_combine,
    parameters_addition,
    parameters_mod,
)
from flwr.common.secure_aggregation.quantization import quantize
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from numpy.typing import NDArray

from client.secure_aggregation import RoundGuard, SecureAggregationClient
from common.errors import FedwardError
from common.masking import apply_masks
from common.quantization import FieldSpec, RingLayout
from common.records import ModelUpdate
from common.roster import Member, Roster
from common.secagg_parameters import AttemptContext, SecureAggregationParameters
from server.secure_aggregation import SecureAggregationServer
from simulation.bench_child import in_child
from simulation.bench_secure_round import measure_round
from simulation.local_processes import status_bytes

_PEERS = 9
_MIB = 1 << 20
_COHORT_VALUES = 10_000
_QUICK_COHORTS = [(10, 0.2), (100, 0.0), (100, 0.2)]

_MODEL_VALUES = 22_000_000
"""Parameters of the embedded encoder. Smaller vectors flatter Flower's side: its arrays then stay in the
allocator's heap, where at this size each one is mapped and faulted in anew."""


# Flower 1.42, SecAggPlusWorkflow's defaults.
_FLOWER_CLIP = 8.0
_FLOWER_TARGET = 2**22
_FLOWER_MODULUS = 2**32


def run(quick: bool) -> dict[str, float]:
    """Measure and return numbers by name.

    Args:
        quick: 3 turns, and cohorts of 10 and 100, in about a minute; otherwise 7 turns, the server's
            unmasking at full length, and cohorts of 10, 100 and 1000 (a quarter of an hour).

    Returns:
        `mask.aes_fraction` (of raw AES-256-CTR, one thread), `mask.vs_flower` and `quantize.vs_flower`
        (times quicker), `wire.vs_flower` (times fewer bytes), `mask.peak_memory_ratio` (to the float32
        vector, itself included), the rates and seconds behind them, and per cohort
        `cohort.{sites}.{dropout}.site_ms` and `.server_ms_per_site`; and the figures of
        `simulation.bench_secure_round`.

    Raises:
        FedwardError: A sum was not exact in the ring.
    """
    repeats = 3 if quick else 7
    numbers = _measure_masks(_MODEL_VALUES, repeats)
    numbers |= _measure_quantization(_MODEL_VALUES, repeats)
    numbers |= _measure_wire(_MODEL_VALUES)
    numbers["mask.peak_memory_ratio"] = in_child(_measure_memory, _MODEL_VALUES)
    if quick:
        numbers |= measure_round(sites=3, notes=12, repeats=1)
        numbers |= _measure_cohorts(_QUICK_COHORTS)
        return numbers
    numbers |= measure_round(sites=8, notes=100, repeats=2)
    numbers |= _measure_unmasking(_MODEL_VALUES, sites=20, dropped=4)
    sizes = [(sites, share) for sites in (10, 100, 1000) for share in (0.0, 0.05, 0.2)]
    numbers |= _measure_cohorts(sizes)
    for share in (0.0, 0.05, 0.2):
        large, small = (numbers[f"cohort.{sites}.{share:g}.site_ms"] for sites in (1000, 100))
        numbers[f"cohort.1000_to_100.{share:g}.site_ratio"] = large / small
    return numbers


def _measure_masks(values: int, repeats: int) -> dict[str, float]:
    """One site's masks: its own and nine peers', against raw AES and against Flower's generator."""
    vector = np.ones(values, np.uint32)
    keys = [os.urandom(32) for _ in range(_PEERS + 1)]
    stream = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16))).encryptor()
    source, target = bytes(_MIB), bytearray(_MIB)
    flower = [np.ones(values, np.int64)]
    aes, ours, theirs = [], [], []

    def raw() -> None:
        for _ in range(4 * values * len(keys) // _MIB):
            stream.update_into(source, target)

    for _ in range(repeats):
        aes.append(_seconds(raw))
        ours.append(_seconds(lambda: apply_masks(vector, add=keys[:5], subtract=keys[5:])))
        theirs.append(_seconds(lambda: _mask_as_flower(flower)))
    started = time.perf_counter()
    apply_masks(vector, add=keys[:5], subtract=keys[5:], threads=2)
    both_cores = time.perf_counter() - started
    gigabytes = 4e-9 * values * len(keys)
    return {
        "mask.aes_fraction": _best_ratio(aes, ours),
        "mask.vs_flower": _best_ratio(theirs, [seconds / len(keys) for seconds in ours]),
        "mask.gigabytes_per_second": gigabytes / min(ours),
        "mask.aes_gigabytes_per_second": gigabytes / min(aes),
        "mask.seconds_9_peers": min(ours),
        "mask.seconds_9_peers_2_threads": both_cores,
        "mask.values": float(values),
    }


def _mask_as_flower(parameters: list[NDArray[np.int64]]) -> None:
    """One peer's mask as secaggplus_mod makes and adds it."""
    mask = pseudo_rand_gen(os.urandom(32), _FLOWER_MODULUS, [array.shape for array in parameters])
    parameters_mod(parameters_addition(parameters, mask), _FLOWER_MODULUS)


def _measure_quantization(values: int, repeats: int) -> dict[str, float]:
    """Clip and stochastic rounding, against Flower's."""
    vector = _update_vector(values)
    flower: list[NDArray[Any]] = [vector]
    layout = _layout(values, sites=10)
    fields = {"delta": vector, "num_examples": np.ones(1, np.float32)}
    ours, theirs = [], []
    for _ in range(repeats):
        ours.append(_seconds(lambda: layout.encode(fields, weight=1.0)))
        theirs.append(_seconds(lambda: quantize(flower, _FLOWER_CLIP, _FLOWER_TARGET)))
    return {
        "quantize.vs_flower": _best_ratio(theirs, ours),
        "quantize.seconds": min(ours),
        "quantize.flower_seconds": min(theirs),
    }


def _measure_wire(values: int) -> dict[str, float]:
    """Bytes of the masked arrays in Flower's own serialisation, as each protocol sends them."""
    flower = factor_combine(_FLOWER_TARGET, [np.zeros(values, np.int64)])
    theirs = sum(len(ndarray_to_bytes(array)) for array in flower)
    ours = len(ndarray_to_bytes(np.zeros(values, np.uint32)))
    return {"wire.vs_flower": theirs / ours, "wire.bytes_per_value": ours / values}


def _measure_memory(values: int) -> float:
    """Peak memory of quantising and masking an update, above what was there, to its float32 vector."""
    base = status_bytes("VmRSS")
    vector = _update_vector(values)
    fields = {"delta": vector, "num_examples": np.ones(1, np.float32)}
    masked = _layout(values, sites=10).encode(fields, weight=1.0)
    apply_masks(masked, add=[os.urandom(32) for _ in range(_PEERS + 1)])
    return (status_bytes("VmHWM") - base) / vector.nbytes


def _measure_unmasking(values: int, *, sites: int, dropped: int) -> dict[str, float]:
    """The server's side at full length: folding and unmasking, with sites lost after they shared keys."""
    federation = _Federation(sites, values)
    costs = federation.run(dropped)
    return {
        f"unmask.{sites}_sites_{dropped}_dropped.seconds": costs["finish"],
        f"unmask.{sites}_sites_{dropped}_dropped.fold_seconds_per_site": costs["fold"] / (sites - dropped),
        f"unmask.{sites}_sites_{dropped}_dropped.site_seconds": costs["site"] / sites,
    }


def _measure_cohorts(sizes: list[tuple[int, float]]) -> dict[str, float]:
    """Whole attempts of small vectors; each sum is compared in the ring."""
    numbers = {}
    for sites, share in sizes:
        costs = _Federation(sites, _COHORT_VALUES).run(int(share * sites))
        numbers[f"cohort.{sites}.{share:g}.site_ms"] = 1e3 * costs["site"] / sites
        server = costs["route"] + costs["fold"] + costs["finish"]
        numbers[f"cohort.{sites}.{share:g}.server_ms_per_site"] = 1e3 * server / sites
        numbers[f"cohort.{sites}.{share:g}.degree"] = costs["degree"]
    return numbers


class _Federation:
    """Sites that all hold the same whole-numbered update, so that the sum is known exactly."""

    def __init__(self, sites: int, values: int) -> None:
        """Make keys, roster, layout and the update."""
        self.names = [f"site-{number:04d}" for number in range(sites)]
        self.keys = {name: Ed25519PrivateKey.generate() for name in self.names}
        members = [
            Member(name=name, identity_key=key.public_key().public_bytes_raw())
            for name, key in self.keys.items()
        ]
        self.roster = Roster(tuple(members))
        self.parameters = SecureAggregationParameters(collusion_tolerance=max(1, sites // 20))
        self.layout = RingLayout(
            fields=(FieldSpec(name="delta", size=values, bound=1023.0, levels=1023),), maximum_sites=sites
        )
        self.values = np.arange(values, dtype=np.int32) % 2047 - 1023
        self.update = ModelUpdate(fields={"delta": self.values.astype(np.float32)}, weight=1.0)
        self.costs = {"site": 0.0, "route": 0.0, "fold": 0.0, "finish": 0.0, "degree": 0.0}

    def run(self, dropped: int) -> dict[str, float]:
        """One attempt, in which some sites are lost after sharing keys; returns processor seconds by part."""
        context = AttemptContext.of(
            self.parameters,
            self.layout,
            plan_hash=bytes(32),
            model_hash=bytes(32),
            round=1,
            attempt=1,
            nonce=os.urandom(32),
        )
        server = SecureAggregationServer(
            roster=self.roster, parameters=self.parameters, layout=self.layout, context=context
        )
        with tempfile.TemporaryDirectory() as folder:
            clients = {name: self._client(name, context, Path(folder)) for name in self.names}
            survivors = self._exchange(server, clients, dropped)
            opened = self._charge("finish", server.finish)
        expected = (len(survivors) * self.values).astype(np.uint32)
        if not np.array_equal(opened.vector, expected) or opened.survivors != tuple(survivors):
            raise FedwardError(f"The sum over {len(survivors)} sites was not exact; do not use this program.")
        return self.costs

    def _exchange(
        self, server: SecureAggregationServer, clients: dict[str, SecureAggregationClient], dropped: int
    ) -> list[str]:
        """The five exchanges; returns the survivors' names."""
        for name, site in clients.items():
            self._charge("route", server.add_advert, name, self._charge("site", site.advertise))
        adverts = self._charge("route", server.close_adverts)
        for name, site in clients.items():
            self._charge("route", server.add_shares, name, self._charge("site", site.share_keys, adverts))
        deliveries = self._charge("route", server.close_shares)
        self.costs["degree"] = float(server.design.degree)
        # A stride spreads the lost sites over the roster; the graph places sites by a hash anyway.
        lost = set(self.names[:: len(self.names) // dropped][:dropped]) if dropped else set()
        survivors = [name for name in self.names if name not in lost]
        for name, site in clients.items():
            header, vector = self._charge("site", site.upload, deliveries[name], self.update)
            if name not in lost:
                self._charge("fold", server.add_upload, name, header, vector)
        request = self._charge("route", server.close_uploads)
        for name in survivors:
            answer = self._charge("site", clients[name].confirm, request)
            self._charge("route", server.add_confirmation, name, answer)
        request = self._charge("route", server.close_confirmations)
        for name in survivors:
            answer = self._charge("site", clients[name].unmask, request)
            self._charge("route", server.add_unmask, name, answer)
        return survivors

    def _client(self, name: str, context: AttemptContext, folder: Path) -> SecureAggregationClient:
        """One site."""
        return SecureAggregationClient(
            name=name,
            identity_key=self.keys[name],
            roster=self.roster,
            parameters=self.parameters,
            layout=self.layout,
            context=context,
            guard=RoundGuard(folder / name),
            audit=lambda event, details: None,
        )

    def _charge(self, part: str, call: Callable[..., Any], *arguments: Any) -> Any:
        """Make a call and charge its processor time to a part."""
        started = time.process_time()
        answer = call(*arguments)
        self.costs[part] += time.process_time() - started
        return answer


def _layout(values: int, *, sites: int) -> RingLayout:
    """A layout as a plan would make it: 20 bits per value and one count."""
    delta = FieldSpec.real("delta", size=values, bound=_FLOWER_CLIP, bits=20)
    return RingLayout(fields=(delta, FieldSpec.count("num_examples", bound=1 << 20)), maximum_sites=sites)


def _update_vector(values: int) -> NDArray[np.float32]:
    """Values of an update's size and spread, without a float64 copy."""
    return np.random.default_rng(7).standard_normal(values, dtype=np.float32)


def _seconds(call: Callable[[], object]) -> float:
    """Processor seconds of one call."""
    started = time.process_time()
    call()
    return time.process_time() - started


def _best_ratio(numerators: list[float], denominators: list[float]) -> float:
    """The best turn of one over the best turn of the other."""
    return min(numerators) / min(denominators)
