"""The messages between the coordinator and a worker: one frozen class each, JSON objects on the wire.

A message travels as `{"t": name, ...fields}`. Fields are JSON values only, so that `decode(encode(m)) == m`.
Coordinator to worker: Configure, Prepare, Cancel, Switch, Commit, Abort, Adopt, Release, Digest, Stop.
Worker to coordinator: Hello, Configured, Prepared, Copied, Vote, Aborted, Failed, Digests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar


class MessageError(ValueError):
    """A message that is unknown or lacks a field."""


@dataclass(frozen=True)
class Message:
    """Base of all messages; `t` names the kind on the wire."""

    t: ClassVar[str]


@dataclass(frozen=True)
class Hello(Message):
    """A worker is up; its rendezvous store and its transfer server listen on ports of `host`."""

    t = "hello"
    pid: int
    host: str
    store_port: int
    transfer_port: int


@dataclass(frozen=True)
class Configure(Message):
    """What to train. `model` is the template's content, `corpus` the files, absolute or below the node's
    folder for data, `backup` an address.

    `faults` are scripted deaths for tests: objects with keys node, step, point.
    """

    t = "configure"
    node: str
    model: dict[str, Any]
    seed: int
    corpus: list[str]
    token: str
    backup: list[Any] | None
    exact: bool = True
    faults: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Configured(Message):
    """The worker is ready for an assignment, or `error` says why it is not.

    `samples` is the size of an epoch, `corpus_digest` the text's SHA-256: all workers must read the same.
    """

    t = "configured"
    samples: int
    corpus_digest: str
    parameters: list[list[Any]] = field(default_factory=list)
    error: str = ""


@dataclass(frozen=True)
class Prepare(Message):
    """Build the groups of a generation beside the running one.

    `position` is [pipeline, stage]; `cuts` the layers of each stage; `store` the [host, port] of the
    generation's rendezvous. `copies` are [layer, [host, port]] pairs to copy ahead, if training goes on.
    With redundancy `works` are the stages of each worker of the own pipeline, in their order, and `shadows`
    those of which it keeps a copy.
    """

    t = "prepare"
    generation: int
    pipelines: int
    position: list[int]
    cuts: list[list[int]]
    store: list[Any]
    copies: list[list[Any]] = field(default_factory=list)
    works: list[list[int]] = field(default_factory=list)
    shadows: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True)
class Cancel(Message):
    """Forget a prepared generation; the running one goes on."""

    t = "cancel"
    generation: int


@dataclass(frozen=True)
class Prepared(Message):
    """The groups of this generation stand."""

    t = "prepared"
    generation: int
    seconds: float


@dataclass(frozen=True)
class Copied(Message):
    """The layers that the generation needs here are here, and kept up to date, step by step.

    `bytes_ahead` came in `seconds`. What could not be copied is fetched at the switch.
    """

    t = "copied"
    generation: int
    bytes_ahead: int
    seconds: float


@dataclass(frozen=True)
class Switch(Message):
    """Begin `step` in this generation, after fetching [layer, source] pairs.

    A source is "seed", "backup", or [host, port] of a worker's transfer server.
    """

    t = "switch"
    generation: int
    step: int
    fetches: list[list[Any]]


@dataclass(frozen=True)
class Vote(Message):
    """This worker has its whole gradient for (generation, step).

    `losses` are [micro-batch, mean loss] pairs (last stage only), `square_norms` [layer, |gradient|^2] pairs
    (pipeline 0 only). Before a generation's first step, `fetched_bytes` came in `fetch_s` at the switch, and
    `ahead_bytes` in `ahead_s` while the generation before was training. `held_out_losses` are like `losses`,
    in the steps that evaluate. `backup_s` is what the backup has cost this worker since its last vote.
    """

    t = "vote"
    generation: int
    step: int
    losses: list[list[Any]]
    square_norms: list[list[Any]]
    fetched_bytes: int = 0
    fetch_s: float = 0.0
    compute_s: float = 0.0
    ahead_bytes: int = 0
    ahead_s: float = 0.0
    held_out_losses: list[list[Any]] = field(default_factory=list)
    backup_s: float = 0.0


@dataclass(frozen=True)
class Commit(Message):
    """The step is decided: apply the optimiser with gradients times `scale`.

    `proceed`: begin the next step at once. `push`: send a copy of your stage to the backup; `stream`: send
    the gradient of this step.
    """

    t = "commit"
    generation: int
    step: int
    scale: float
    proceed: bool
    push: bool = False
    stream: bool = False


@dataclass(frozen=True)
class Abort(Message):
    """Leave every generation up to and including this one, and say what you hold."""

    t = "abort"
    generation: int


@dataclass(frozen=True)
class Aborted(Message):
    """The worker stands before `step` and holds these layers of it, whole."""

    t = "aborted"
    generation: int
    step: int
    holds: list[int]


@dataclass(frozen=True)
class Adopt(Message):
    """Another coordinator goes on with the job: leave every generation up to `until`, and say what you hold.

    The last step that was committed is `step`, in `generation`, with gradients times `scale`: who has voted
    for it and has not been told applies it first. `configure` is for a worker that was not configured yet;
    one that was takes the address of the backup from it. The answers are an Aborted and a Configured.
    """

    t = "adopt"
    until: int
    generation: int
    step: int
    scale: float
    configure: dict[str, Any]


@dataclass(frozen=True)
class Release(Message):
    """The generation goes on without this worker: drop every layer."""

    t = "release"
    generation: int


@dataclass(frozen=True)
class Failed(Message):
    """The worker cannot go on in this generation and waits for an abort.

    `source`: [host, port] of the state server that it was fetching from, if that failed.
    """

    t = "failed"
    generation: int
    error: str
    source: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Digest(Message):
    """Report the SHA-256 of the weights of every layer held, and send a copy of these to the backup."""

    t = "digest"
    push: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Digests(Message):
    """[layer, hexadecimal SHA-256 of its fp32 weights] pairs, at `step`; see `digests.TIED_TABLE`."""

    t = "digests"
    step: int
    layers: list[list[Any]]


@dataclass(frozen=True)
class Stop(Message):
    """End the process."""

    t = "stop"


_KINDS: Mapping[str, type[Message]] = {
    kind.t: kind
    for kind in (
        Hello,
        Configure,
        Configured,
        Prepare,
        Cancel,
        Prepared,
        Copied,
        Switch,
        Vote,
        Commit,
        Abort,
        Aborted,
        Adopt,
        Release,
        Failed,
        Digest,
        Digests,
        Stop,
    )
}


def encode(message: Message) -> dict[str, Any]:
    """The JSON object of a message."""
    return {"t": message.t, **asdict(message)}


def decode(wire: Mapping[str, Any]) -> Message:
    """The message of a JSON object.

    Raises:
        MessageError: the kind is unknown, or a field is missing or too many.
    """
    kind = _KINDS.get(str(wire.get("t")))
    if kind is None:
        raise MessageError(f"unknown message kind {wire.get('t')!r}")
    try:
        return kind(**{key: value for key, value in wire.items() if key != "t"})
    except TypeError as error:
        expected = ", ".join(f.name for f in fields(kind))
        raise MessageError(f"message {kind.t!r} must have the fields {expected}: {error}") from error
