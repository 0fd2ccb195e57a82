"""What travels over the rollout API: the messages of Atropos 0.4.0, and what Shoal adds to them.

JSON over HTTP, gzip both ways. The 13 paths, field names and nulls are Atropos's; its protocol is frozen. Every
addition is one that its own server and clients ignore: a query parameter, an extra key, one extra path.

    POST /register           Registration            -> {"uuid": int}
    POST /register-env       EnvironmentRegistration -> {"status": "wait for trainer to start"} or EnvironmentReply
    POST /disconnect-env     EnvironmentId           -> {"status": "success"}
    GET  /wandb_info                                 -> {"group", "project"}
    GET  /info                                       -> {"batch_size", "max_token_len"}; -1: no trainer is registered
    GET  /batch                                      -> BatchReply
    GET  /latest_example                             -> the newest group
    POST /scored_data        one group               -> {"status": "received"}
    POST /scored_data_list   [group, ...]            -> {"status": "received", "groups_processed": n}
    GET  /status                                     -> Status
    GET  /status-env         EnvironmentId, as body  -> EnvironmentStatus
    GET  /reset_data                                 -> the text "Reset successful"
    GET  /                                           -> {"message"}
    POST /ack                Acknowledgement         -> {"status": "success"}       Shoal's; 404 on Atropos's server
    GET  /healthz, /metrics                          Shoal's

**Leases.** A batch is leased, and handed out again until it is acknowledged. Asking for the next batch acknowledges
the last one: that is all a stock trainer can do. Shoal's trainer asks `GET /batch?ack=explicit`, writes the batch to
its journal, then sends `POST /ack {"lease": reply.lease}`. Until then, asking again gives the same batch with the
same lease, also after a restart of either side. Acknowledging twice is harmless. Atropos's server ignores the query
and its replies have no `lease`: nothing is to be acknowledged then.

**Idempotent posts.** A group may carry `group_key`, a string that is its own. A second post of the same key is
answered like the first and stored once, so a post whose answer was lost is simply repeated. Atropos's server drops
the key.

**Weight versions.** Version n is the weights after n trained batches. An environment that knows it puts the oldest
version that any token of the group was sampled with into `generation_params["weights_version"]`, where it survives
Atropos's server too. The trainer tells its version in `GET /batch?weights_version=n` and in `POST /ack`; `/status`
and `/status-env` tell it to environments. A group without a version is stamped with the trainer's at arrival, and
`GroupInfo.stamped` says so.

**Tokens.** `Authorization: Bearer TOKEN`; or Basic with the token as password, which stock clients send for a URL
such as `http://any:TOKEN@host:8000`. The role of a token is trainer or environment.

**No.** 422: the body is wrong, `detail` says where. 401, 403: no token, or the other role's. 404: unknown
environment. 409: out of order, such as /batch before /register. 413: too large. 503: full, with Retry-After in
seconds; nothing was stored, send again.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

GROUP_FIELDS = (
    "tokens",
    "masks",
    "scores",
    "advantages",
    "ref_logprobs",
    "messages",
    "generation_params",
    "inference_logprobs",
    "overrides",
    "group_overrides",
    "images",
    "env_id",
    "distill_token_ids",
    "distill_logprobs",
)
"""What every group in a batch has, null where it was not sent."""

GROUP_KEY = "group_key"
"""Field of a posted group: its name for idempotent posts. Not in batches; `GroupInfo.key` has it."""

WEIGHTS_VERSION = "weights_version"
"""Key in a group's `generation_params`, query parameter of /batch, field of /ack, /status and /status-env."""

NOT_TRAINED = -100
"""The label in `masks` of a token that is not trained. Any other label is the token's id."""

PROMPT_LOGPROB = 1.0
"""Stands in `inference_logprobs` where a token was not sampled."""

WAIT_FOR_TRAINER = "wait for trainer to start"
"""The status of /register-env until the trainer first asks for a batch: ask again."""

TRAINER_TOKEN = "SHOAL_API_TRAINER_TOKEN"
ENVIRONMENT_TOKEN = "SHOAL_API_ENV_TOKEN"
"""Environment variables that hold the tokens, for the server and for Shoal's clients."""

IDS = 2**31
"""Tokens' ids are below."""

LARGEST = 1e9
"""Scores, advantages and log-probs are no further from 0: with larger ones a loss in 32 bits is not finite."""

Number = Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]
TokenId = Annotated[int, Meta(ge=0, lt=IDS)]
Label = Annotated[int, Meta(ge=NOT_TRAINED, lt=IDS)]
Count = Annotated[int, Meta(ge=0, lt=2**53)]
Positive = Annotated[int, Meta(ge=1, lt=2**31)]


class ScoredGroup(Struct, kw_only=True):
    """The completions of one prompt, with scores: one entry per sequence, and within it one per token.

    `tokens` are prompt and completion; `masks` their labels, NOT_TRAINED or the token's id. `advantages` are per token
    and replace those made from `scores`; there may be more of them than tokens, the rest is not read. `overrides` has
    one dict per sequence (`set_advantage_to_zero`, `temperature`), `group_overrides` one for all (`group_size`,
    `temperature`, `sft`). `distill_*` are [sequence][position][k].
    """

    tokens: list[list[TokenId]]
    masks: list[list[Label]]
    scores: list[Number | bool]
    advantages: list[list[Number]] | None = None
    ref_logprobs: list[list[Number]] | None = None
    messages: list[list[dict[str, Any]]] | None = None
    generation_params: dict[str, Any] | None = None
    inference_logprobs: list[list[Number]] | None = None
    overrides: list[dict[str, Any]] | None = None
    group_overrides: dict[str, Any] | None = None
    images: Any = None
    env_id: Count | None = None
    distill_token_ids: list[list[list[TokenId]]] | None = None
    distill_logprobs: list[list[list[float]]] | None = None
    group_key: Annotated[str, Meta(min_length=1, max_length=200)] | UnsetType = UNSET


class Registration(Struct, kw_only=True):
    """The trainer's. `batch_size` counts sequences, `max_token_len` tokens of one; <= 0 means no limit."""

    wandb_group: str
    wandb_project: str
    batch_size: Positive
    max_token_len: Annotated[int, Meta(ge=-(2**31), lt=2**31)]
    checkpoint_dir: str
    save_checkpoint_interval: Annotated[int, Meta(ge=-1, lt=2**31)]
    starting_step: Annotated[int, Meta(ge=0, lt=2**31)]
    num_steps: Annotated[int, Meta(ge=-1, lt=2**31)]


class EnvironmentRegistration(Struct, kw_only=True):
    """An environment's. `min_batch_allocation` is the least share of each batch that it wants, 0 to 1."""

    max_token_length: Positive
    desired_name: str
    weight: Annotated[float, Meta(ge=0, le=1e9)]
    group_size: Positive
    min_batch_allocation: Annotated[float, Meta(ge=0, le=1)] | None = None


class EnvironmentReply(Struct, kw_only=True):
    """The answer to /register-env. Without a trainer only `status` is there: WAIT_FOR_TRAINER."""

    status: str
    env_id: int = -1
    wandb_name: str = ""
    checkpoint_dir: str = ""
    starting_step: int = 0
    checkpoint_interval: int = -1
    num_steps: int = -1


class EnvironmentId(Struct):
    env_id: Count


class Status(Struct, kw_only=True):
    """`current_step` counts batches delivered since `starting_step`, `queue_size` groups that wait."""

    current_step: int
    queue_size: int
    weights_version: int | None = None


class EnvironmentStatus(Struct, kw_only=True):
    """For one environment. `queue_size` is what all environments have waiting, in groups of this one's size."""

    current_step: int
    queue_size: int
    unallocated_fraction: float
    self_queue_size: int
    max_group_size: int
    env_weight: float
    weights_version: int | None = None


class Acknowledgement(Struct):
    """The trainer has the batch of this lease on its disk. `weights_version`: the weights it holds now."""

    lease: Count
    weights_version: Count | None = None


class GroupInfo(Struct, kw_only=True):
    """What the server knows of a group in a batch. `received` in seconds since 1970; `id` rises with arrival."""

    id: int
    key: str | None
    env_id: int | None
    weights_version: int | None
    stamped: bool
    received: float


class BatchReply(Struct, kw_only=True):
    """The answer to /batch. `batch` null: not enough yet, and Shoal's server says why in `reason`.

    `lease`, `step` and `groups` (beside `batch`, in its order) come from Shoal's server only. `status` is "error", with
    `message` and an empty batch, where no trainer is registered.
    """

    batch: list[ScoredGroup] | None
    lease: int | None = None
    step: int | None = None
    groups: list[GroupInfo] | None = None
    reason: str | None = None
    status: str | None = None
    message: str | None = None
