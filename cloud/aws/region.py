"""One region as a launch uses it: its API, its pools, and what was made there."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cloud.aws.api import Api, ApiError
from cloud.aws.event_queue import QueueWatch, ensure_queue
from cloud.aws.launch_record import LaunchRecord, requests_folder
from cloud.aws.market import (
    TYPES_FOR_SCORES,
    eligible_types,
    placement_scores,
    spot_prices,
    subnets_by_zone,
)
from cloud.aws.requests import PoolPlan
from cloud.aws.settings import AwsSettings
from cloud.aws.shared import ensure_group, ensure_key_pair, ensure_template, image_id
from cloud.types import Notice


class Region:
    """Made ready only when something is to be rented there. Methods block."""

    def __init__(self, api: Api, vpc: str, plans: Sequence[PoolPlan]) -> None:
        self.api, self.vpc, self.plans = api, vpc, tuple(plans)
        self.template = ""
        self._watch: QueueWatch | None = None
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """As AWS calls it."""
        return self.api.region

    def has(self, zone: str) -> bool:
        """Whether a zone is in this region: zones are called after their region."""
        return zone.startswith(self.name)

    def plan_of(self, instance_type: str, subnet: str) -> PoolPlan | None:
        """The pool of an override; an empty subnet: any of the type."""
        for plan in self.plans:
            if plan.pool.instance_type == instance_type and subnet in ("", plan.subnet):
                return plan
        return None

    def prepare(
        self,
        record: LaunchRecord,
        settings: AwsSettings,
        folder: Path,
        key: tuple[str, str],
        ours: Callable[[str], bool],
    ) -> None:
        """Key pair (public half and fingerprint in `key`), security group, launch template, queue; once.

        Raises:
            CloudError: something of it was refused.
        """
        with self._lock:
            if self.template:
                return
            requests_folder(folder, self.name).mkdir(parents=True, exist_ok=True)
            try:
                key_name = ensure_key_pair(self.api, *key)
                group = ensure_group(self.api, settings, self.vpc)
                image = image_id(self.api, settings)
                template = ensure_template(self.api, record, settings, image, key_name, group)
                self._listen(record, settings, ours)
            except ApiError as error:
                raise error.sorted from error
            self.template = template

    def _listen(self, record: LaunchRecord, settings: AwsSettings, ours: Callable[[str], bool]) -> None:
        if settings.notices == "eventbridge":
            self._watch = QueueWatch(self.api, ensure_queue(self.api, record.owner), True, ours)
            self._watch.start()

    def ask_market(
        self, settings: AwsSettings, wanted: int, gpus: int | None
    ) -> tuple[dict[tuple[str, str], float], dict[tuple[str, str], float]]:
        """Prices, USD an hour, and scores of our pools, both by type and zone.

        The scores are of the same question as before the launch (0 `wanted`: none): new ones are rationed.

        Raises:
            ApiError: it is refused.
        """
        kinds = sorted({plan.pool.instance_type for plan in self.plans})
        scores: dict[str, int] = {}
        if wanted:
            types = sorted(eligible_types(self.api, settings, gpus))
            zone_ids = subnets_by_zone(self.api, settings)[1] if len(types) >= TYPES_FOR_SCORES else {}
            scores = placement_scores(self.api, types, wanted, zone_ids)
        pools = [plan.pool for plan in self.plans if plan.pool.zone in scores]
        return spot_prices(self.api, kinds), {
            (pool.instance_type, pool.zone): float(scores[pool.zone]) for pool in pools
        }

    def heard(self) -> Mapping[str, Notice]:
        """What the queue has told, by instance."""
        return {} if self._watch is None else self._watch.heard()

    def close(self) -> None:
        """Listen no more."""
        if self._watch is not None:
            self._watch.stop()


def queue_region(url: str) -> str:
    """The region in a queue's URL; empty where it does not tell."""
    found = re.match(r"https?://sqs\.([a-z0-9-]+)\.amazonaws\.", url)
    return found.group(1) if found else ""
