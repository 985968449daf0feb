"""Questions and rewards."""

from dataclasses import dataclass
from typing import Literal

from p2o_jax.config.ranges import SECONDS, SEED
from p2o_jax.config.setting import setting


@dataclass(frozen=True)
class WorldConfig:
    """The built-in world: a small language with its own base model and questions, used where
    model.path or data.path is "world".
    """

    size: Literal["small", "medium", "large"] = setting(
        "small",
        "Size of the language. medium: strategies of three parts, and tokens that plain responses"
        " hardly ever have (p2o_jax/toy_world/medium.py); large: more question families and longer"
        " chains (p2o_jax/toy_world/large.py), wants a GPU.",
    )
    seed: int = setting(0, "Seed of families, documents, pretraining and questions.", SEED)
    p_chain_plain: float = setting(
        1e-5,
        "Probability in the pretraining text that a question without a template is answered by its"
        " whole chain: how hard the world is.",
        gt=0,
        le=1,
    )
    steps: int = setting(1500, "Pretraining steps.", ge=1)
    batch_rows: int = setting(16, "Rows per pretraining step.", ge=1)
    row_tokens: int = setting(96, "Tokens per pretraining row.", ge=1)
    width: int = setting(128, "Width of the base model.", ge=1)
    layers: int = setting(3, "Layers of the base model.", ge=1)
    heads: int = setting(4, "Attention heads of the base model.", ge=1)
    kv_heads: int = setting(2, "Key and value heads of the base model.", ge=1)
    head_dim: int = setting(32, "Dimension of each head of the base model.", ge=2)
    mlp: int = setting(256, "Hidden width of the base model's MLP.", ge=1)
    hard_per_family: int = setting(16, "Training questions of each hard family.", ge=1)
    easy_per_family: int = setting(4, "Training questions of each easy family.", ge=0)
    heldout_per_family: int = setting(32, "Held-out questions of each hard family.", ge=1)
    cache_dir: str = setting(
        "runs/world",
        "Folder of pretrained base models, with one folder per world config.",
        resumable=True,
    )


@dataclass(frozen=True)
class DataConfig:
    """Training and held-out questions."""

    path: str = setting(
        "world",
        "Training questions: a file, a folder, hf:NAME, tfds:NAME,"
        ' reasoning_gym:TASK,TASK?size=N&seed=N, or "world" (p2o_jax/data/sources.py).',
    )
    eval_path: str = setting(
        "",
        "Held-out questions: a source as in data.path, a benchmark of p2o_jax/data/benchmarks.py as"
        " NAME or NAME=PATH, or NAME=PATH,NAME=PATH for several sets, the first of which is the"
        " main one. world and world:NAME are held-out sets of the built-in world. Empty: world with"
        " data.path=world, otherwise no evaluation.",
    )
    question_field: str = setting(
        "question",
        "Field of a row that holds the question: a text, or a list of chat messages. A dot reaches"
        " into a nested field. Rows without it are read in the layouts of p2o_jax/data/layouts.py.",
    )
    answer_field: str = setting(
        "answer",
        "Field of a row that holds the reference answer, as question_field. Empty: there are none,"
        " and reward.fn judges without them.",
    )
    hint_field: str = setting(
        "",
        "Field of a row that holds a hint, as question_field; for gepa.reflector=hint. A blank hint"
        " is none: the question is always asked plainly.",
    )
    answers: Literal["auto", "final", "raw"] = setting(
        "auto",
        "Reference answers that are solutions: they end in GSM8K's #### or hold a \\boxed{}. final:"
        " their final answers replace them, and are counted. raw: they are kept. auto: raw if"
        " reward.fn judges without `correct`, otherwise final.",
    )
    prompt_template: str = setting(
        "Let's think step by step and output the final answer within \\boxed{}.\n"
        "Question: {question}",
        "Text around a question that is a text; {question} is replaced by it, other braces are"
        " kept. The default is the released code's.",
    )
    tfds_dir: str = setting("", "Folder of TensorFlow Datasets. Empty: that library's default.")
    max_prompt_tokens: int = setting(
        4096,
        "Longest plain prompt, in tokens. Longer ones are an error that names their lines.",
        ge=1,
    )


@dataclass(frozen=True)
class RewardConfig:
    """How responses are scored."""

    kind: Literal["exact", "math"] = setting(
        "math",
        "How the last \\boxed{} answer is compared with the reference. exact: as text; math: with"
        " math-verify, in worker processes.",
    )
    fn: str = setting(
        "",
        "Your own reward in place of reward.kind: FILE.py:function or package.module:function"
        " (p2o_jax/rewards/own.py). Or several rewards with weights, as in"
        " correct,format=0.2,FILE.py:function=0.1, whose weighted mean is the score: correct is the"
        " reward without this setting, format is 1 where the last box is closed.",
    )
    env: tuple[str, ...] = setting(
        (),
        "Names of environment variables that reward.fn needs. Its workers see no others that could"
        " hold keys or tokens.",
        resumable=True,
    )
    success_above: float = setting(
        0.5,
        "A response with a reward above this is a success, everywhere: in mining, the prompt"
        " phase, template assignment and history.",
        ge=0,
        lt=1,
        why="no score is above 1",
    )
    workers: int = setting(
        0, "Verifier processes. 0: one per CPU core.", ge=0, le=4096, resumable=True
    )
    timeout_s: float = setting(
        5.0,
        "Seconds after which the verification of an answer is stopped.",
        SECONDS,
        resumable=True,
    )
