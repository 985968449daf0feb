"""Short questions about words and capitals: 64 to train on and 48 held out, as JSONL."""

import json
import random
from pathlib import Path

TRAIN, HELD_OUT = 64, 48
# (wording, subject=answer …)
FAMILIES = {
    "plural": (
        "What is the plural of {}?",
        "dog=dogs box=boxes mouse=mice child=children foot=feet tooth=teeth man=men woman=women"
        " goose=geese city=cities baby=babies leaf=leaves knife=knives wolf=wolves bus=buses"
        " church=churches potato=potatoes tomato=tomatoes fox=foxes book=books car=cars"
        " house=houses tree=trees apple=apples bird=birds fish=fish sheep=sheep story=stories"
        " lady=ladies wife=wives shelf=shelves glass=glasses dish=dishes watch=watches key=keys"
        " boy=boys table=tables flower=flowers",
    ),
    "opposite": (
        "What is the opposite of {}?",
        "hot=cold up=down left=right good=bad happy=sad fast=slow tall=short young=old rich=poor"
        " light=dark day=night open=closed full=empty wet=dry clean=dirty hard=soft strong=weak"
        " early=late near=far high=low inside=outside love=hate true=false win=lose push=pull"
        " buy=sell begin=end first=last front=back black=white wide=narrow thick=thin loud=quiet"
        " heavy=light summer=winter north=south east=west sharp=dull",
    ),
    "capital": (
        "What is the capital of {}?",
        "France=Paris Italy=Rome Germany=Berlin England=London Japan=Tokyo China=Beijing"
        " Russia=Moscow Egypt=Cairo Greece=Athens Portugal=Lisbon Austria=Vienna Poland=Warsaw"
        " Ireland=Dublin Norway=Oslo Sweden=Stockholm Denmark=Copenhagen Finland=Helsinki"
        " Hungary=Budapest Canada=Ottawa Cuba=Havana Peru=Lima Chile=Santiago Kenya=Nairobi"
        " Iraq=Baghdad Iran=Tehran Thailand=Bangkok Vietnam=Hanoi Turkey=Ankara Belgium=Brussels"
        " Ukraine=Kyiv Romania=Bucharest Bulgaria=Sofia Australia=Canberra India=Delhi"
        " Scotland=Edinburgh Wales=Cardiff Colombia=Bogota Mexico=Mexico_City",
    ),
}


def rows() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """(training, held-out) questions with their answers, shuffled; always the same."""
    everything = []
    for family, (wording, pairs) in FAMILIES.items():
        for pair in pairs.split():
            subject, answer = pair.replace("_", " ").split("=")
            everything.append(
                {"question": wording.format(subject), "answer": answer, "family": family}
            )
    random.Random(0).shuffle(everything)
    return everything[:TRAIN], everything[TRAIN : TRAIN + HELD_OUT]


def write(folder: Path) -> tuple[Path, Path]:
    """Writes train.jsonl and heldout.jsonl, and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "train.jsonl", folder / "heldout.jsonl"
    for path, part in zip(paths, rows(), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    return paths
