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
        "A verdict on each criterion, or one mark from 1 to 10 in view of all",
        choices=("criteria", "likert"),
    )
    answer: str = option("completion", "What is judged: all of it, or its last <answer>", choices=("completion", "tag"))
    closed_book: bool = option(False, "Citation marks are taken out, and the judge is told to expect no sources")
    template_file: str | None = option(None, "Jinja file in place of the text that asks about a criterion (or a mark)")
    normalize: bool = option(
        False, "Each criterion's scores are shifted to mean 0 and scaled to deviation 1 over the step before weighting"
    )
    adaptive: bool = option(False, "The judge writes new criteria from each group's completions")
    apply_to: str = option(
        "current", "The group that they were written from, or its prompt's next", choices=("current", "future")
    )
    generator_model: str | None = option(None, "Model that writes them. None: reward.judge.model")
    generator_template_file: str | None = option(None, "Jinja file in place of the text that asks for them")
    full_responses: bool = option(True, "It sees whole completions. false: answers, a random few within answer_words")
    answer_words: int = option(450, "Words of answers that it sees together (at least two answers)", least=1)
    buffer: bool = option(True, "Keep each prompt's criteria for when it comes again. false: for one step only")
    max_active: int = option(5, "Criteria of a prompt that stay active: those whose scores differ most", least=0)
    static_persistent: bool = option(True, "Criteria from the data always count. false: they start active")
    readd_static_every: int = option(
        10, "With static_persistent=false: steps after which a prompt's own criteria are active again", least=1
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
