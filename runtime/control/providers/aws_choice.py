"""EC2: which machine, and in which region. One look at every region, and all of it can be shown.

Pipelines over the links between regions would be hopelessly slow, so a job rents in one region at a time. A
region is worth the samples that a dollar buys there times the chance that the fleet is to be had, a tenth of
its best zone's placement score: half as likely must be half as dear.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from cloud.aws.api import Api, ApiError
from cloud.aws.launch_record import RegionPools, Rental
from cloud.aws.market import Offer, check_quota, offers
from cloud.aws.settings import AwsSettings
from cloud.provider import CloudError
from cloud.types import Pool
from runtime.control.job.job import LaunchRequest
from runtime.control.providers.rented import Candidate, Choice, at_price, choose
from runtime.planning.errors import InputError
from runtime.planning.model import DeviceSpec, ModelSpec

MOST_SCORE = 10


@dataclass(frozen=True)
class Look:
    """What a region has to offer; where `why` is set, why it is left out."""

    region: str
    vpc: str = ""
    offers: tuple[Offer, ...] = ()
    choice: Choice | None = None
    why: Exception | None = None

    @property
    def score(self) -> int | None:
        """The best of its zones; None where AWS did not say."""
        return max((score for offer in self.offers for score in offer.scores.values()), default=None)

    def pools(self, offer: Offer) -> RegionPools:
        """What is kept of it."""
        return RegionPools(self.region, self.vpc, offer.pools, dict(offer.scores))


@dataclass(frozen=True)
class Decision:
    """The machine that was chosen with all its regions, and every region that was looked at."""

    choice: Choice
    rental: Rental
    looks: tuple[Look, ...] = ()
    worths: Mapping[str, float] | None = None

    def comparison(self) -> list[dict[str, Any]]:
        """The regions for a person: the chosen one first, the left-out ones with the reason."""
        places = {pools.region: place for place, pools in enumerate(self.rental.regions)}
        rows = []
        for look in sorted(self.looks, key=lambda look: (places.get(look.region, len(places)), look.region)):
            best = look.choice
            rows.append(
                {
                    "region": look.region,
                    "machine": best.candidate.name if best else None,
                    "spot_usd_per_hour": best.candidate.pools[0].spot_usd_per_hour if best else None,
                    "samples_per_usd": best.samples_per_usd if best else None,
                    "placement_score": look.score,
                    "worth": (self.worths or {}).get(look.region),
                    "place": places[look.region] + 1 if look.region in places else None,
                    "why": ""
                    if best is None or look.region in places
                    else "has not the machine that was chosen",
                }
                | ({"why": str(look.why)} if look.why else {})
            )
        return rows


def decide(settings: AwsSettings, request: LaunchRequest, spec: ModelSpec) -> Decision:
    """Ask every region, and choose.

    Raises:
        InputError: no GPU can hold the model; the message shows the arithmetic for each.
        CloudError: nothing is offered, or the quota does not allow the smallest fleet.
    """
    names = settings.all_regions
    check_region_names(names)
    with ThreadPoolExecutor(len(names)) as pool:
        looks = tuple(pool.map(lambda name: _look(name, settings, request, spec), names))
    good = [look for look in looks if look.choice is not None]
    if not good:
        raise _nothing(looks)
    chances = _chances(good)
    worths = {look.region: look.choice.samples_per_usd * chances[look.region] for look in good if look.choice}
    best = max(good, key=lambda look: worths[look.region])
    assert best.choice is not None
    machine = best.choice.candidate.name
    others = []
    for look in good:
        offer = next((offer for offer in look.offers if offer.name == machine), None)
        if look is best or offer is None:
            continue
        plans = tuple(plan for plan in offer.pools if _affordable(request, best.choice, plan.pool))
        try:
            there = choose(request, [_candidate(spec, offer, settings)])
            check_quota(Api(look.region), {plan.pool.instance_type for plan in plans}, best.choice.smallest)
        except (InputError, CloudError):
            continue
        if plans:
            worth = there.samples_per_usd * chances[look.region]
            others.append((worth, look.region, look.pools(replace(offer, pools=plans))))
    offer = next(offer for offer in best.offers if offer.name == machine)
    ordered = [best.pools(offer), *(one[2] for one in sorted(others, key=lambda one: (-one[0], one[1])))]
    rental = Rental(offer.gpu, offer.gpus, offer.gpu_memory_bytes, tuple(ordered))
    return Decision(best.choice, rental, looks, worths)


def decided(rental: Rental, settings: AwsSettings, request: LaunchRequest, spec: ModelSpec) -> Decision:
    """The choice of an earlier launcher of this job, taken again, whatever prices are now.

    Raises:
        InputError: the limits that were given since allow too few nodes.
    """
    home = rental.regions[0]
    offer = Offer(rental.gpu, rental.gpu_memory_bytes, home.plans, home.scores, rental.gpus)
    return Decision(choose(request, [_candidate(spec, offer, settings)]), rental)


def check_region_names(names: Sequence[str]) -> None:
    """Refuse what is no region: asking there would only time out.

    Raises:
        InputError: boto3 does not know it.
    """
    import difflib

    try:
        import boto3
    except ImportError:
        return  # the first call says so
    session = boto3.session.Session()
    known = {
        region
        for partition in session.get_available_partitions()
        for region in session.get_available_regions("ec2", partition)
    }
    for name in names:
        if name and name not in known:
            close = difflib.get_close_matches(name, sorted(known), 3)
            near = f"; did you mean {' or '.join(close)}?" if close else ""
            raise InputError(f"region {name!r}: AWS has no such region (as far as this boto3 knows){near}")


def _look(name: str, settings: AwsSettings, request: LaunchRequest, spec: ModelSpec) -> Look:
    found: tuple[Offer, ...] = ()
    vpc = ""
    try:
        api = Api(name)
        name = api.region
        found, vpc = offers(api, settings, request.nodes, request.gpus_per_node)
        choice = _fewest_gpus(request, [_candidate(spec, offer, settings) for offer in found])
        check_quota(api, {pool.instance_type for pool in choice.candidate.pools}, choice.smallest)
        return Look(name, vpc, found, choice)
    except ApiError as error:
        return Look(name, vpc, found, why=error.sorted)
    except (CloudError, InputError) as error:
        return Look(name, vpc, found, why=error)


def _fewest_gpus(request: LaunchRequest, candidates: Sequence[Candidate]) -> Choice:
    """The best machine with as few GPUs as can be: who did not ask for several does not want to pay for them.

    Raises:
        InputError: none can hold the model.
    """
    refusals = []
    for gpus in sorted({one.gpus for one in candidates}):
        try:
            return choose(request, [one for one in candidates if one.gpus == gpus])
        except InputError as error:
            refusals.append(str(error))
    head = f"{request.model} cannot be trained there: "
    raise InputError(head + "; ".join(text.removeprefix(head) for text in refusals))


def _chances(looks: Sequence[Look]) -> dict[str, float]:
    """A tenth of the placement score. Where it is not known: as likely as the others are on average."""
    known = [look.score for look in looks if look.score is not None]
    usual = sum(known) / len(known) if known else MOST_SCORE
    return {look.region: (usual if look.score is None else look.score) / MOST_SCORE for look in looks}


def _affordable(request: LaunchRequest, choice: Choice, pool: Pool) -> bool:
    """Whether as many nodes as were chosen may run there, too, under --max-price-per-hour."""
    most = request.max_usd_per_hour
    return most is None or pool.spot_usd_per_hour * choice.wanted <= most


def _nothing(looks: Sequence[Look]) -> Exception:
    """The error of the only region, or of all of them in one."""
    whys = [look.why for look in looks if look.why is not None]
    if len(looks) == 1:
        return whys[0]
    text = "; ".join(f"{look.region}: {look.why}" for look in looks)
    alike = type(whys[0]) if all(type(why) is type(whys[0]) for why in whys) else CloudError
    return alike(f"no region can be rented in: {text}")


def _candidate(spec: ModelSpec, offer: Offer, settings: AwsSettings) -> Candidate:
    return Candidate(offer.name, tuple(one.pool for one in offer.pools), _on_device(spec, offer, settings))


def _on_device(spec: ModelSpec, offer: Offer, settings: AwsSettings) -> ModelSpec:
    pool = offer.pools[0].pool
    spec = at_price(spec, pool)
    if settings.device == "model":
        return spec
    speed = settings.gpus.get(offer.gpu)
    if speed is None:
        known = ", ".join(sorted(settings.gpus))
        raise InputError(f"--fleet: [gpus.{offer.gpu}] is missing: give its speed as for {known}")
    device = DeviceSpec(offer.gpu, offer.gpu_memory_bytes, speed.flops_per_s, speed.link_bytes_per_s)
    return replace(spec, device=device)
