"""How a coordinator receives its nodes: what a new worker is told, and what it must be like to take part."""

from __future__ import annotations

from collections.abc import Callable

from cloud.types import NoticeKind
from runtime.control import messages
from runtime.control.backup.keeper import CheckpointKeeper
from runtime.control.backup.process import BackupPort
from runtime.control.fleet import events as fleet_events
from runtime.control.job.recorder import Recorder
from runtime.control.training.phases import give_up_on
from runtime.control.training.resumption import Resumption
from runtime.control.training.roster import Roster
from runtime.control.training.training import Training, TrainingError
from runtime.planning.types import NodeJoined, NoticeWithdrawn


class Reception:
    """The roster's only writer of joins and notices. Times are on the coordinator's clock, in seconds."""

    def __init__(
        self,
        training: Training,
        roster: Roster,
        backup: BackupPort,
        keeper: CheckpointKeeper,
        recorder: Recorder,
        send: Callable[[str, messages.Message], None],
    ) -> None:
        self._training, self._roster = training, roster
        self._backup, self._keeper, self._recorder = backup, keeper, recorder
        self._send = send
        self._corpus_digest = ""

    def join(self, event: fleet_events.WorkerJoined, resumption: Resumption | None) -> None:
        """A worker is up: tell it about the job, or if it was at work in it, that we have taken over."""
        node, parsed = event.node, messages.decode(event.hello)
        assert isinstance(parsed, messages.Hello)
        # A scripted death is for a node's first worker, its successor must live; a failure is the machine's.
        first = self._roster.join(node, parsed)
        lasting = ("fails", "always")
        faults = [fault for fault in self._training.faults if first or any(map(fault.get, lasting))]
        port = event.backup_port
        backup = self._backup.address if port is None else ("127.0.0.1", port)
        configure = self._training.configure(node, backup, faults)
        if event.adopted and resumption is not None:
            self._send(node, resumption.adopt(configure))
            return
        if resumption is not None:
            resumption.forget(node)
        self._send(node, configure)

    def configured(self, node: str, message: messages.Configured) -> NodeJoined:
        """A worker has the model and the text.

        Raises:
            TrainingError: it reads another text than the others.
        """
        if self._corpus_digest and message.corpus_digest != self._corpus_digest:
            raise TrainingError(
                f"node {node} reads another text than the others: give every node the same files (--data)"
            )
        self._corpus_digest = message.corpus_digest
        self._keeper.learn(message.parameters)
        self._roster.make_ready(node)
        if self._roster.whole(node):
            self._recorder.joined(node)
        return NodeJoined(node)

    def hear(self, event: object, now_s: float, began: bool, fewest_nodes: int | None) -> None:
        """What befalls instances; `fewest_nodes` can train, and have not yet unless the job has `began`.

        Raises:
            CloudError: there are too few, and no waiting can mend it.
        """
        match event:
            case fleet_events.NodeNoticed():
                self.notice(event, now_s)
            case fleet_events.InstanceChanged(instance):
                self._recorder.instance(instance)
                self._roster.instance(instance)
            case fleet_events.RentFailed():
                self._recorder.event("trouble", event.why)
                if not began:
                    give_up_on(event.error, self._roster, fewest_nodes)
            case fleet_events.NodeBroken(node, why):
                self._recorder.event("trouble", f"{node}: {why}; ending the instance")

    def notice(self, event: fleet_events.NodeNoticed, now_s: float) -> None:
        """The cloud has warned about a node."""
        if event.notice.kind is NoticeKind.REBALANCE or event.notice.deadline_s is None:
            self._recorder.event("rebalance", f"{event.node} may be taken", "the cloud's rebalance hint")
            return
        left_s = self._recorder.noticed(event.node, event.notice.deadline_s)
        self._roster.notice(event.node, now_s + left_s)

    def spared(self, now_s: float) -> list[NoticeWithdrawn]:
        """A node that outlives its deadline by an interval was spared: it counts again."""
        spared = self._roster.spared(now_s - max(self._training.interval_s, 1.0))
        for node in spared:
            self._recorder.spared(node)
        return [NoticeWithdrawn(node) for node in spared]
