"""Groups as the Atropos protocol has them, and back.

A scored group has, for each sequence, `tokens` and `masks` of one length: a mask is -100 where the token is not trained
and the token's id elsewhere. `inference_logprobs` are the sampler's, 1.0 where nothing was sampled. What the protocol
has no field for travels in `generation_params`, which every server passes on: under `shoal`, weight versions, stop
reasons, parts of rewards and texts by sequence, and which sequences are turns of one completion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from shoal.engines.base import SamplingParams
from shoal.errors import DataError
from shoal.rollout_api.group_fields import EXTRAS, InvalidBodyError, check_group
from shoal.rollout_api.protocol import GROUP_KEY, NOT_TRAINED, PROMPT_LOGPROB, WEIGHTS_VERSION
from shoal.types import Completion, Group, Prompt, Segment, StopReason

ScoredData = dict[str, Any]


def to_scored_data(group: Group, sampling: SamplingParams, env_id: int | None = None, key: str = "") -> ScoredData:
    """A scored group for the wire. Every completion must have a reward: see `Group.known_rewards`. `key` is the group's
    own, so that it may be sent twice."""
    owners = [
        (number, segment) for number, completion in enumerate(group.completions) for segment in completion.segments
    ]
    completions = [group.completions[number] for number, _ in owners]
    told = all("messages" in completion.info for completion in completions)
    own_advantages = any(segment.advantages is not None for _, segment in owners)
    versions = [completion.first_version for completion in group.completions]
    oldest = {WEIGHTS_VERSION: min(versions)} if min(versions) >= 0 else {}
    extras = {
        "group": group.id,
        "epoch": group.epoch,
        "source": group.prompt.source if group.prompt else "",
        "ground_truth": group.prompt.ground_truth if group.prompt else None,
        "messages": group.prompt.messages if group.prompt else [],
        "completions": [number for number, _ in owners],
        "stop_reasons": [completion.stop_reason.value for completion in group.completions],
        "versions": [completion.versions for completion in group.completions],
        "reward_parts": [completion.reward_parts for completion in group.completions],
        "penalties": [completion.penalties for completion in group.completions],
        "texts": [completion.text for completion in group.completions],
    }
    return {
        GROUP_KEY: key or None,  # the server takes it off most easily at the front
        "tokens": [segment.context_ids + segment.sampled_ids for _, segment in owners],
        "masks": [_mask(segment) for _, segment in owners],
        "scores": [float(completion.reward or 0.0) for completion in completions],
        "inference_logprobs": [_logprobs(segment) for _, segment in owners],
        "advantages": [_advantages(segment) for _, segment in owners] if own_advantages else None,
        "overrides": [completion.overrides for completion in completions],
        "group_overrides": {"group_size": len(owners)},
        "generation_params": {
            "temperature": sampling.temperature,
            "max_tokens": sampling.max_new_tokens,
            "top_p": sampling.top_p,
            **oldest,
            EXTRAS: extras,
        },
        "messages": [completion.info["messages"] for completion in completions] if told else None,
        "env_id": env_id,
    }


def _mask(segment: Segment) -> list[int]:
    sampled = [id_ if trained else NOT_TRAINED for id_, trained in zip(segment.sampled_ids, segment.mask, strict=True)]
    return [NOT_TRAINED] * len(segment.context_ids) + sampled


def _logprobs(segment: Segment) -> list[float]:
    sampled = zip(segment.logprobs, segment.mask, strict=True)
    return [PROMPT_LOGPROB] * len(segment.context_ids) + [value if used else PROMPT_LOGPROB for value, used in sampled]


def _advantages(segment: Segment) -> list[float]:
    return [0.0] * len(segment.context_ids) + (segment.advantages or [0.0] * len(segment.sampled_ids))


def to_group(data: Mapping[str, Any], name: str, source: str) -> Group:
    """A group from the wire, of any environment. `name` is its id and `source` that of its prompts where it has none.

    Segments begin at the first trained token; ids after the last trained one are left out. A sequence without
    inference log-probs gets none (an empty list), for the learner to fill in.

    Raises:
        DataError: lengths differ, a trained token is not the one that stands there, there are no sequences, or a field
            holds what `group_fields` does not allow.
    """
    try:
        check_group(data)
    except InvalidBodyError as error:
        raise DataError(f"group {name}: {'.'.join(map(str, error.where))}: {error.message}") from error
    tokens, masks, scores = data["tokens"], data["masks"], data["scores"]
    if not tokens or not len(tokens) == len(masks) == len(scores):
        raise DataError(f"group {name}: {len(tokens)} tokens, {len(masks)} masks and {len(scores)} scores")
    params = data.get("generation_params") or {}
    extras = params.get(EXTRAS) or {}
    owners = extras.get("completions") or list(range(len(tokens)))
    if len(owners) != len(tokens):
        raise DataError(f"group {name}: {len(owners)} completions for {len(tokens)} sequences")
    completions: dict[int, Completion] = {}
    for place, number in enumerate(owners):
        segment = _segment(data, place, name)
        if number not in completions:
            completions[number] = _completion(data, extras, place, number)
        completions[number].segments.append(segment)
    for completion in completions.values():
        completion.text = completion.text or _last_text(completion.info.get("messages"))
    contexts = {tuple(one.segments[0].context_ids) for one in completions.values()}
    prompt = None
    if len(contexts) == 1:
        first = next(iter(completions.values()))
        prompt = Prompt(
            id=extras.get("group") or name,
            token_ids=list(first.segments[0].context_ids),
            ground_truth=extras.get("ground_truth"),
            messages=extras.get("messages") or list(first.info.get("messages") or [])[:-1],
            source=extras.get("source") or source,
        )
    group = Group(extras.get("group") or name, list(completions.values()), prompt, int(extras.get("epoch") or 0))
    stamp(group, params.get(WEIGHTS_VERSION))
    return group


def stamp(group: Group, version: int | None) -> None:
    """Notes that completions of an unknown version are of `version`, or newer weights."""
    for completion in group.completions:
        if not completion.versions and version is not None:
            completion.versions = [(0, version)]


def _completion(data: Mapping[str, Any], extras: Mapping[str, Any], place: int, number: int) -> Completion:
    score = data["scores"][place]
    overrides = dict(_at(data.get("overrides"), place) or {})
    temperature = (data.get("group_overrides") or {}).get("temperature")
    if temperature is None:
        temperature = (data.get("generation_params") or {}).get("temperature")
    if temperature is not None and overrides.get("temperature") is None:
        overrides["temperature"] = temperature
    if overrides.get("temperature") is None:
        overrides.pop("temperature", None)  # null is none given
    messages = _at(data.get("messages"), place)
    return Completion(
        segments=[],
        stop_reason=StopReason(_at(extras.get("stop_reasons"), number) or "stop"),
        text=_at(extras.get("texts"), number) or "",
        versions=[(start, version) for start, version in _at(extras.get("versions"), number) or []],
        reward=float(score) if score is not None and isfinite(score) else None,
        reward_parts=_at(extras.get("reward_parts"), number) or {},
        penalties=_at(extras.get("penalties"), number) or {},
        overrides=overrides,
        info={"messages": messages} if messages else {},
    )


def _segment(data: Mapping[str, Any], place: int, name: str) -> Segment:
    ids, labels = data["tokens"][place], data["masks"][place]
    where = f"group {name}, sequence {place}"
    columns = {"masks": labels}
    for key in ("inference_logprobs", "ref_logprobs", "advantages"):
        value = _at(data.get(key), place)
        if value is not None:
            columns[key] = value
    for key, value in columns.items():
        if len(value) != len(ids):
            raise DataError(f"{where}: {len(value)} {key} for {len(ids)} tokens")
    trained = [label != NOT_TRAINED for label in labels]
    if any(used and label != id_ for used, label, id_ in zip(trained, labels, ids, strict=True)):
        raise DataError(f"{where}: a mask is neither -100 nor the token that stands there (0/1 masks are not known)")
    # The first token of a sequence has nothing before it that could predict it.
    first = max(next((at for at, used in enumerate(trained) if used), len(ids)), 1)
    end = max((at + 1 for at, used in enumerate(trained) if used), default=first)
    mask = trained[first:end]
    logprobs = columns.get("inference_logprobs")
    return Segment(
        context_ids=list(ids[:first]),
        sampled_ids=list(ids[first:end]),
        logprobs=[]
        if logprobs is None
        else [value if used else 0.0 for value, used in zip(logprobs[first:end], mask, strict=True)],
        mask=mask,
        ref_logprobs=None if "ref_logprobs" not in columns else list(columns["ref_logprobs"][first:end]),
        advantages=None if "advantages" not in columns else list(columns["advantages"][first:end]),
    )


def _at(values: Sequence[Any] | None, place: int) -> Any:
    return values[place] if values is not None and place < len(values) else None


def _last_text(messages: Sequence[Mapping[str, Any]] | None) -> str:
    return str(messages[-1]["content"]) if messages else ""
