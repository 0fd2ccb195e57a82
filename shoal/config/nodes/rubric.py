"""Options of the verifier `rubric`."""

from dataclasses import dataclass

from shoal.config.options import option


@dataclass
class RubricConfig:
    """Criteria with signed weights, from the data, a file or the judge, and how completions are scored by them."""

    general: str | None = option(
        None, "Criteria for every prompt: `default`, or a YAML or JSON file of title, description, weight. None: none"
    )
    mode: str = option(
        "criteria",
        "criteria: the judge rates each criterion. likert: one rating from 1 to 10 based on all criteria",
        choices=("criteria", "likert"),
    )
    answer: str = option(
        "completion",
        "What the judge sees. completion: all of it. tag: its last <answer> block",
        choices=("completion", "tag"),
    )
    closed_book: bool = option(False, "Remove citation marks and tell the judge not to expect sources")
    template_file: str | None = option(
        None, "Jinja file that replaces the prompt for rating a criterion (or the whole answer)"
    )
    normalize: bool = option(
        False, "Each criterion's scores are shifted to mean 0 and scaled to deviation 1 over the step before weighting"
    )
    adaptive: bool = option(False, "The judge writes new criteria from each group's completions")
    apply_to: str = option(
        "current",
        "What adaptive criteria score. current: the group they were written from. future: the prompt's next group",
        choices=("current", "future"),
    )
    generator_model: str | None = option(None, "Model that writes adaptive criteria. None: reward.judge.model")
    generator_template_file: str | None = option(
        None, "Jinja file that replaces the prompt for writing adaptive criteria"
    )
    full_responses: bool = option(
        True, "The judge that writes criteria sees whole completions. false: a random few answers, within answer_words"
    )
    answer_words: int = option(
        450,
        "With full_responses=false: most words of all answers shown to that judge (at least two answers are shown)",
        least=1,
    )
    buffer: bool = option(True, "Keep each prompt's criteria until it is sampled again. false: for one step only")
    max_active: int = option(5, "Most active criteria per prompt; those whose scores differ most are kept", least=0)
    static_persistent: bool = option(
        True, "Criteria from the data are always used. false: they start as active and can become inactive"
    )
    readd_static_every: int = option(
        10, "With static_persistent=false: steps after which a prompt's static criteria become active again", least=1
    )
    save: str = option(
        "rubrics",
        "What adaptive_rubrics.jsonl holds: criteria with scores and changes, or the completions too",
        choices=("off", "rubrics", "responses"),
    )
    log_direction_agreement: bool = option(False, "Log each criterion's correlation with the score")


def asks_rubric(rubric: RubricConfig) -> bool:
    """Whether criteria are configured that do not come from the data: then the verifier `rubric` judges every row."""
    return rubric.general is not None or rubric.adaptive
