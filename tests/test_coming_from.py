"""docs/coming-from.md: its commands run, on a tiny model and local rows, and its keys are keys."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from shoal.cli.command import main
from shoal.config.compose import compose_config, search_folder
from shoal.config.keys import all_keys, holder_of
from shoal.config.overrides import GROUPS, check_overrides
from shoal.engines.vllm.arguments import VllmArguments
from shoal.engines.vllm.process import VllmProcess
from shoal.network import free_port

PAGE = (Path(__file__).parent.parent / "docs" / "coming-from.md").read_text(encoding="utf-8")
OPEN_INSTRUCT2 = PAGE.partition("## Open-Instruct2")[2].partition("\n## ")[0]
EXAMPLES = [
    shlex.split(block.replace("\\\n", " "))
    for block in re.findall(r"```bash\n(.*?)```", OPEN_INSTRUCT2, flags=re.DOTALL)
]


def test_there_are_the_eight_launch_examples() -> None:
    assert len(EXAMPLES) == 8
    assert all(words[:2] == ["shoal", "train"] for words in EXAMPLES)


def sections() -> dict[str, str]:
    """The page's parts by the trainer that one comes from."""
    return {part.partition("\n")[0]: part for part in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]}


def keys_named(text: str) -> set[str]:
    """Keys of Shoal in the last column of tables, in commands and in prose. Words of the other trainer are not."""
    here = "\n".join(
        line.rstrip("|").rpartition(" | ")[2] if line.startswith("| ") else line for line in text.splitlines()
    )
    roots = {name.partition(".")[0] for name in all_keys()}
    words = re.findall(r"(?<![\w.`/:])`?((?:[a-z_]+\.)+[a-z_0-9]+)(?==|`)", here)
    return {name for name in words if name.partition(".")[0] in roots}


@pytest.mark.parametrize(
    ("trainer", "least"),
    [
        ("Open-Instruct2", 60),
        ("TRL's GRPOTrainer", 50),
        ("TorchRL's GRPO recipe", 35),
        ("Open-Instruct", 30),
        ("Atropos and its example trainer", 25),
    ],
)
def test_every_key_on_the_page_is_a_key(trainer: str, least: int) -> None:
    keys = all_keys()
    named = keys_named(sections()[trainer])
    # An entry of a key that holds values by name, such as reward.verifiers.citations, stands under that key.
    assert {name for name in named if name not in keys and holder_of(name) is None} == set()
    assert len(named) >= least


@pytest.mark.parametrize("trainer", ["TRL's GRPOTrainer", "TorchRL's GRPO recipe", "Open-Instruct"])
def test_the_settings_on_the_page_compose(trainer: str) -> None:
    """`key=value` and `group=choice`, each by itself: refused are only combinations."""
    for name, value in re.findall(r"`((?:[a-z_]+\.)*[a-z_]+)=([a-z_0-9\\|{}: .]+)`", sections()[trainer]):
        if name not in all_keys() and name not in GROUPS:
            continue
        for choice in value.split("\\|"):
            compose_config("story", check_overrides([f"{name}={choice}"]), search_folder(None))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random model of two layers whose tokens are characters."""
    folder = tmp_path_factory.mktemp("model")
    words = Tokenizer(WordLevel({chr(code): code for code in range(128)}, unk_token="\x00"))
    words.pre_tokenizer = pre_tokenizers.Split("", behavior="isolated")
    words.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="\x00", eos_token="\x03")
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    config = Qwen3Config(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=512,
        eos_token_id=3,
        pad_token_id=3,
        bos_token_id=None,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Rows as `ai2-adapt-dev/rlvr_gsm8k_zs` has them."""
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    made = [
        {"messages": [{"role": "user", "content": f"{n}+{n}?"}], "ground_truth": str(2 * n), "dataset": "gsm8k"}
        for n in range(8)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in made))
    return str(file)


@pytest.fixture(scope="module")
def endpoint(model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """A reference that someone else runs: the overrides that find it."""
    port = free_port("127.0.0.1")
    log = tmp_path_factory.mktemp("endpoint") / "server.log"
    server = VllmProcess(
        [
            f"--model={model}",
            "--dtype=float32",
            "--max-model-len=400",
            "--enforce-eager",
            "--kv-cache-memory-bytes=200000000",
        ],
        VllmArguments(model, "float32", 400, 16, "cpu").environment(),
        host="127.0.0.1",
        port=port,
        log=log,
        start_timeout=400,
        key="the test's",
    )
    server.wait_until_healthy()
    yield ["reference.host=127.0.0.1", f"reference.port={port}"]
    server.stop()


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize("number", range(8))
def test_a_launch_example_of_open_instruct2_runs_as_a_smoke_test(
    number: int, model: str, rows: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    here = ["runtime.target=cpu", f"model.name={model}", f"data.path={rows}", "runtime.mixed_precision=none"]
    if "reference.kind=vllm_endpoint" in EXAMPLES[number]:
        here += request.getfixturevalue("endpoint")
    else:
        here += ["reference.port=0"]
    # What is given on the command line a smoke test leaves as it is: these are what it is to shrink.
    sizes = {"run.episodes", "run.prompts_per_step", "run.group_size", "sampling.max_new_tokens"}
    replaced = {word.partition("=")[0] for word in here} | sizes
    words = [word for word in EXAMPLES[number][1:] if word.partition("=")[0] not in replaced and word != "--smoke-test"]
    # The KL of a policy to itself is 0; a second step after a large one shows that the reference does not follow.
    places = [f"run.root={tmp_path}", "run.name=run", "optimizer.lr=1e-2", "runtime.threads=1"]
    assert main([*words, "--smoke-test", *here, *places]) == 0
    rows_written = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows_written if "count/completions" in row]
    assert [row["step"] for row in trained] == [1, 2]
    exact = "reference.dtype=float16" not in words
    assert abs(trained[0]["kl_ref/k3"]) < (1e-6 if exact else 1e-2)
    assert trained[1]["kl_ref/k3"] > 1e-5
