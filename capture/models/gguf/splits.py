"""How byte-level vocabularies cut text into words before pieces are merged, by the value of `tokenizer.ggml.pre`.

The expressions are those of the models' own tokenizer.json. Each cuts what the ones before it have left; what an
expression does not match stays a word of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _cl100k(digits: str) -> str:
    return rf"{ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{BLANKS}"


def _cased(ending: str, digits: str) -> str:
    first = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{ending}|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{ending}"
    return rf"{first}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{BLANKS}"


LLAMA3 = (_cl100k(r"\p{N}{1,3}"),)
QWEN2 = (_cl100k(r"\p{N}"),)
QWEN35 = (rf"{ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{BLANKS}",)
DIGITS = (r"\p{N}", GPT2)
FALCON = (r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"[0-9][0-9][0-9]")
DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")
BLOOM = (r" ?[^(\s|.,!?…。，、।۔،)]+",)
TEKKEN = (_cased("", r"\p{N}"),)
GPT4O = (_cased(f"{ENDINGS}?", r"\p{N}{1,3}"),)
DEEPSEEK3 = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    (
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
        rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{BLANKS}"
    ),
)


@dataclass(frozen=True)
class Cut:
    """Expressions in order; `whole`: a word that is itself in the vocabulary is not merged anew; `begins`: text begins
    with the token for that, unless the file says otherwise.
    """

    expressions: tuple[str, ...]
    whole: bool = False
    begins: bool = False


CUTS: dict[str, Cut] = {
    "default": Cut(DEFAULT),
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "gigachat", "trillion", "exaone4"), Cut((GPT2,))),
    **dict.fromkeys(("a.x-4.0", "mellum", "granite-docling"), Cut((GPT2,))),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), Cut(DIGITS)),
    "falcon": Cut(FALCON),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1"), Cut(LLAMA3, whole=True, begins=True)),
    **dict.fromkeys(("pixtral", "midm-2.0", "lfm2"), Cut(LLAMA3, whole=True, begins=True)),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe"), Cut(LLAMA3)),
    "glm4": Cut(LLAMA3, whole=True),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "kormo", "megrez", "stablelm2", "hunyuan"), Cut(QWEN2)),
    "qwen35": Cut(QWEN35),
    **dict.fromkeys(("bloom", "poro-chat", "gpt3-finnish"), Cut(BLOOM)),
    "tekken": Cut(TEKKEN, whole=True, begins=True),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "minimax-m2"), Cut(GPT4O)),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense"), Cut(DEEPSEEK3)),
}
"""What llama.cpp and the models agree on, tried against llama.cpp's own tokenizer (benchmarks/models/llamacpp.py)."""
