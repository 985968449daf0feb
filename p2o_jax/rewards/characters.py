r"""Unicode in answers, rewritten as the ASCII or LaTeX that it stands for: 45° as 45^\circ."""

import re
import unicodedata

_FRACTION_SLASH = "⁄"
_GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ζ": "zeta", "η": "eta",
    "θ": "theta", "ι": "iota", "κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu", "ξ": "xi",
    "π": "pi", "ρ": "rho", "σ": "sigma", "τ": "tau", "υ": "upsilon", "φ": "phi", "χ": "chi",
    "ψ": "psi", "ω": "omega", "Γ": "Gamma", "Δ": "Delta", "Θ": "Theta", "Λ": "Lambda", "Ξ": "Xi",
    "Π": "Pi", "Σ": "Sigma", "Υ": "Upsilon", "Φ": "Phi", "Ψ": "Psi", "Ω": "Omega",
}  # fmt: skip
_COMMANDS = _GREEK | {
    "·": "cdot", "⋅": "cdot", "∙": "cdot", "•": "cdot", "∗": "cdot", "×": "times", "✕": "times",
    "÷": "div", "±": "pm", "∓": "mp", "≤": "le", "⩽": "le", "≦": "le", "≥": "ge", "⩾": "ge",
    "≧": "ge", "≠": "ne", "≈": "approx", "≡": "equiv", "∞": "infty", "∈": "in", "∉": "notin",
    "∪": "cup", "∩": "cap", "∖": "setminus", "∅": "emptyset", "⌀": "emptyset", "∠": "angle",
    "∆": "Delta", "∑": "sum", "∏": "prod", "∫": "int", "→": "to", "⌊": "lfloor", "⌋": "rfloor",
    "⌈": "lceil", "⌉": "rceil", "⟨": "langle", "⟩": "rangle", "⊂": "subset", "⊆": "subseteq",
    "⊥": "perp", "∥": "parallel", "∧": "wedge", "∨": "vee", "¬": "neg", "⇒": "Rightarrow",
    "⇔": "Leftrightarrow", "∀": "forall", "∃": "exists", "∂": "partial", "∇": "nabla",
}  # fmt: skip
_TABLE = str.maketrans(
    {character: rf"\{name} " for character, name in _COMMANDS.items()}
    | {"°": r"^\circ ", "º": r"^\circ ", "‖": r"\|", "∣": "|", "∕": "/", _FRACTION_SLASH: "/"}
    | {"。": ".", "、": ",", "“": '"', "”": '"', "‘": "'", "’": "'", "′": "'", "″": "''"}
    | dict.fromkeys("−‐‑﹣", "-")
    | dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad\u200e\u200f", None)
)
_BEFORE_COMPATIBILITY = str.maketrans(
    {letter: rf"\mathbb{{{plain}}}" for letter, plain in zip("ℝℤℚℕℂ", "RZQNC", strict=True)}
    | {"º": "°"}
)
_SUPERSCRIPTS = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ]+")
_SUBSCRIPTS = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑₒₓₕₖₗₘₙₚₛₜ]+")
_THIN_SPACE = re.compile("(?<=[0-9])[\u00a0\u2007\u2008\u2009\u200a\u202f](?=[0-9]{3}(?![0-9]))")
# An en dash or em dash is a sign where nothing stands before it; elsewhere it may mean "to".
_DASH_SIGN = re.compile(r"(^\s*|[(\[{,;=:<>]\s*)[–—](?=\s*[0-9.A-Za-z\\])")
_ROOT = re.compile("[√∛∜]")
_INDEX = {"√": "", "∛": "[3]", "∜": "[4]"}
_SPACES = re.compile(" *")
_RADICAND = re.compile(r"[0-9]+(?:\.[0-9]+)?|\\[A-Za-z]+|[^\W_]")


def to_latex(text: str) -> str:
    """The text with mathematical Unicode characters replaced; other letters stay as they are.

    Full-width and styled letters and digits become plain ones. A thin or no-break space between
    groups of three digits becomes a LaTeX thin space, which separates thousands.
    """
    if text.isascii():
        return text
    text = _THIN_SPACE.sub(r"\\,", text).translate(_BEFORE_COMPATIBILITY)
    text = _SUPERSCRIPTS.sub(lambda m: f"^{{{_plain(m.group())}}}", text)
    text = _SUBSCRIPTS.sub(lambda m: f"_{{{_plain(m.group())}}}", text)
    text = "".join(map(_vulgar_fraction, text))
    text = unicodedata.normalize("NFKC", text)
    text = _DASH_SIGN.sub(r"\1-", text.translate(_TABLE))
    return _roots(text)


def _plain(characters: str) -> str:
    return unicodedata.normalize("NFKC", characters).replace("−", "-")


def _vulgar_fraction(character: str) -> str:
    if unicodedata.category(character) != "No":
        return character
    top, slash, bottom = unicodedata.normalize("NFKC", character).partition(_FRACTION_SLASH)
    return rf"\frac{{{top}}}{{{bottom}}}" if slash and top and bottom else character


def _roots(text: str) -> str:
    r"""√2 as \sqrt{2}. Under the root is a bracketed group, a number, a command or a letter."""
    if not _ROOT.search(text):
        return text
    parts: list[str] = []
    brackets: list[bool] = []  # of those open now: whether it opened the radicand of a root
    position = 0
    while position < len(text):
        character = text[position]
        position += 1
        if root := _ROOT.fullmatch(character):
            parts.append(rf"\sqrt{_INDEX[root.group()]}")
            spaces = _SPACES.match(text, position)
            position = spaces.end() if spaces else position
            if text.startswith("(", position):
                parts.append("{")
                brackets.append(True)
                position += 1
            elif radicand := _RADICAND.match(text, position):
                parts.append(f"{{{radicand.group()}}}")
                position = radicand.end()
        elif character == "(":
            brackets.append(False)
            parts.append(character)
        elif character == ")" and brackets:
            parts.append("}" if brackets.pop() else character)
        else:
            parts.append(character)
    return "".join(parts)
