"""Relations of facts: how one is asked for, and subjects with their answers.

The subject stands in a sentence of its own, so that prose can stand between it and the question. Wordings were chosen
for a small model: SmolLM2-135M answers most of them (docs/movers.md).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    """`head` names the subject as `{subject}`, `tail` asks; `facts` are (subject, answer) in order."""

    name: str
    head: str
    tail: str
    facts: tuple[tuple[str, str], ...]


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    """Return the facts of `subject answer, subject answer, …`."""
    made = [tuple(entry.split()) for entry in text.split(",")]
    return tuple((subject, answer) for subject, answer in made)


_ALL = (
    Relation(
        "capital",
        "We are talking about {subject}.",
        " The capital of that country is the city of",
        _pairs(
            "France Paris, Italy Rome, Spain Madrid, Germany Berlin, Russia Moscow, China Beijing, Japan Tokyo,"
            " India Delhi, Egypt Cairo, England London, Greece Athens, Poland Warsaw, Portugal Lisbon,"
            " Sweden Stockholm, Norway Oslo, Denmark Copenhagen, Hungary Budapest, Turkey Ankara, Iran Tehran,"
            " Iraq Baghdad, Peru Lima, Chile Santiago, Cuba Havana, Kenya Nairobi, Thailand Bangkok, Vietnam Hanoi,"
            " Korea Seoul, Austria Vienna, Ireland Dublin, Finland Helsinki, Israel Jerusalem, Ukraine Kiev,"
            " Canada Ottawa, Australia Canberra, Afghanistan Kabul, Lebanon Beirut, Syria Damascus"
        ),
    ),
    Relation(
        "language",
        "This is a text about {subject}.",
        " The official language of the country is",
        _pairs(
            "France French, Italy Italian, Spain Spanish, Germany German, Russia Russian, Japan Japanese, India Hindi,"
            " Egypt Arabic, England English, Greece Greek, Poland Polish, Portugal Portuguese, Sweden Swedish,"
            " Norway Norwegian, Denmark Danish, Hungary Hungarian, Turkey Turkish, Iran Persian, Iraq Arabic,"
            " Mexico Spanish, Peru Spanish, Brazil Portuguese, Nigeria English, Thailand Thai, Vietnam Vietnamese,"
            " Korea Korean, Austria German, Finland Finnish, Israel Hebrew, Morocco Arabic, Ukraine Ukrainian,"
            " Argentina Spanish, Australia English"
        ),
    ),
    Relation(
        "continent",
        "We are talking about {subject}.",
        " That country lies on the continent of",
        _pairs(
            "France Europe, Italy Europe, Spain Europe, Germany Europe, China Asia, Japan Asia, India Asia,"
            " Egypt Africa, Greece Europe, Poland Europe, Portugal Europe, Sweden Europe, Norway Europe,"
            " Denmark Europe, Hungary Europe, Iran Asia, Iraq Asia, Kenya Africa, Nigeria Africa, Thailand Asia,"
            " Vietnam Asia, Korea Asia, Austria Europe, Ireland Europe, Finland Europe, Morocco Africa,"
            " Ukraine Europe, Ghana Africa, Ethiopia Africa, Uganda Africa, Somalia Africa, Mongolia Asia,"
            " Pakistan Asia, Nepal Asia"
        ),
    ),
    Relation(
        "symbol",
        "We are talking about the element {subject}.",
        " Its chemical symbol is",
        _pairs(
            "gold Au, silver Ag, iron Fe, copper Cu, lead Pb, tin Sn, sodium Na, potassium K, oxygen O, hydrogen H,"
            " carbon C, nitrogen N, helium He, calcium Ca, zinc Zn, mercury Hg, uranium U, sulfur S, chlorine Cl,"
            " aluminum Al, magnesium Mg, nickel Ni, silicon Si, lithium Li, iodine I, phosphorus P, tungsten W,"
            " platinum Pt, titanium Ti"
        ),
    ),
    Relation(
        "opposite",
        "We are talking about the word {subject}.",
        " The opposite of that word is",
        _pairs(
            "hot cold, big small, up down, left right, good bad, day night, black white, white black, high low,"
            " low high, fast slow, slow fast, open closed, happy sad, sad happy, hard soft, soft hard, rich poor,"
            " poor rich, long short, short long, early late, strong weak, weak strong, young old, wet dry, dry wet,"
            " true false, false true, war peace, dark light, north south, south north, east west, west east,"
            " heavy light, thick thin, wide narrow, narrow wide, buy sell, win lose, male female, female male"
        ),
    ),
    Relation(
        "plural",
        "We are talking about the word {subject}.",
        " The plural of that word is",
        _pairs(
            "man men, woman women, child children, foot feet, tooth teeth, mouse mice, person people, leaf leaves,"
            " knife knives, wife wives, wolf wolves, shelf shelves, city cities, baby babies, country countries,"
            " box boxes, bus buses, church churches, dish dishes, story stories, family families, party parties,"
            " body bodies, watch watches, class classes, brush brushes"
        ),
    ),
)

RELATIONS = {relation.name: relation for relation in _ALL}
