"""From a checkpoint to a model folder, for `from_pretrained`, vLLM and `shoal eval`."""

from __future__ import annotations

from logging import getLogger
from pathlib import Path

import torch

from shoal.config import ShoalConfig
from shoal.files import replace_folder
from shoal.learners.deepspeed.saved import saved_weights
from shoal.learners.saved import unusable
from shoal.runtime import prepare_process, resolve_runtime
from shoal.training.policy import open_policy

logger = getLogger(__name__)


def export(cfg: ShoalConfig, checkpoint: Path, folder: Path) -> Path:
    """Writes the weights of a checkpoint (`RUN/checkpoints/step_N`) as a model, or as an adapter where one was trained,
    with its tokenizer. `cfg` is the run's. What stood in `folder` before is replaced.

    Raises:
        TrainingError: the checkpoint cannot be read, or is of another model.
    """
    weights = saved_weights(checkpoint)
    runtime = resolve_runtime(cfg.runtime, cfg.model)
    prepare_process(cfg.runtime)
    policy = open_policy(cfg, runtime)
    trained = {name: value for name, value in policy.model.named_parameters() if value.requires_grad}
    try:
        shapes = {name: value.shape for name, value in weights.items()}
    except (TypeError, AttributeError) as error:
        raise unusable(checkpoint, "is no checkpoint of a run") from error
    if shapes != {name: value.shape for name, value in trained.items()}:
        raise unusable(checkpoint, "is of another model than the run's configuration names")
    with torch.no_grad():
        for name, value in trained.items():
            value.copy_(weights[name])

    def write(partial: Path) -> None:
        policy.model.save_pretrained(partial)
        policy.tokenizer.save_pretrained(partial)

    replace_folder(folder, write)
    logger.info("the model of %s is in %s", checkpoint, folder)
    return folder
