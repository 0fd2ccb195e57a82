"""Options of the algorithm: advantages, the surrogate, KL terms, the sampler correction."""

from dataclasses import dataclass

from shoal.config.options import option


@dataclass
class OverlongConfig:
    """A soft penalty for completions near the token limit (DAPO)."""

    penalty: float = option(0.0, "Largest amount taken off the reward, reached at the token limit. 0: none", least=0)
    buffer: int = option(0, "Tokens before the limit over which the penalty grows linearly from 0", least=0)


@dataclass
class AlgorithmConfig:
    """How rewards become a gradient. The formulas stand in docs/architecture.md."""

    surrogate: str = option("clip", "Policy-gradient surrogate", choices=("clip", "cispo", "gspo"))
    clip_low: float = option(0.2, "The ratio is clipped below 1 - clip_low (clip, gspo)", least=0)
    clip_high: float = option(0.2, "The ratio is clipped above 1 + clip_high", least=0)
    advantage: str = option(
        "standard", "Advantage from a group's rewards", choices=("standard", "centered", "leave_one_out")
    )
    std: str = option("population", "Standard deviation of `standard`", choices=("population", "sample"))
    eps: float = option(1e-6, "Added to the standard deviation", least=0)
    aggregation: str = option(
        "sequence", "Mean of the token losses over one optimizer step", choices=("token", "sequence", "constant")
    )
    kl_coef: float = option(0.0, "Weight of the KL to the reference. 0: no reference is loaded", least=0)
    kl_estimator: str = option("k3", "KL estimator in the loss", choices=("k1", "k2", "k3", "k4"))
    kl_in: str = option(
        "loss", "Where the KL to the reference goes; in the reward it is k1", choices=("loss", "reward")
    )
    sampler_kl_coef: float = option(0.0, "Weight of the k3 KL to the sampler", least=0)
    entropy_coef: float = option(0.0, "Weight of the entropy bonus", least=0)
    old_logprobs: str = option("learner", "Log-probs in the ratio's denominator", choices=("learner", "sampler"))
    correction: str = option(
        "none",
        "Correction for the mismatch of sampler and learner",
        choices=("none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
    )
    correction_low: float = option(0.5, "Lower edge of the band of the mask corrections", least=0)
    correction_high: float = option(2.0, "Cap of the truncations, upper edge of the mask band", least=0)
    correction_average: str = option(
        "geometric", "Sequence ratio over a completion's tokens", choices=("product", "geometric")
    )
    num_epochs: int = option(1, "Passes over each batch", least=1)
    num_minibatches: int = option(1, "Optimizer steps per pass", least=1)
    zero_variance: str = option(
        "keep", "Groups whose rewards are all equal: kept, dropped, or replaced", choices=("keep", "drop", "refill")
    )
    refill_rounds: int = option(8, "Most extra rounds of rollouts per step under zero_variance=refill", least=1)
    mask_truncated: bool = option(False, "Leave truncated completions out of the loss (they count in their group)")
    overlong: OverlongConfig = option(OverlongConfig, "Soft penalty for long completions")
