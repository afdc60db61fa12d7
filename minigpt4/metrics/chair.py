"""CHAIR (Rohrbach et al. 2018): objects of COCO's 80 kinds that a caption names and that are not in the picture.

    chair_i   of the objects that are named, the share that is not there (the paper's figure)
    chair_s   of the captions, the share with such an object
    recall    of the kinds that are there, the share that is named
    words     of a caption, the mean: longer captions invent more, so that the two belong together

The words for each kind are this project's own list. It follows the choices of the CHAIR code where a word is no kind by
itself ("desk" is a dining table, "monitor" a tv, "van" a car), but knows more phrases, so that figures are close to those
of that code, not the same.
"""

import re
from functools import cache

import datasets
import evaluate

from minigpt4.metrics.statistics import ratio
from minigpt4.processing.scenes import plural

# COCO's kinds, each with words that mean it; "!" begins a phrase that holds such a word and means something else.
_WORDS = """
person: man, woman, people, boy, girl, child, kid, baby, adult, guy, lady, gentleman, male, female, toddler, teenager,
  mother, father, sister, brother, bride, groom, player, skier, surfer, rider, skater, skateboarder, snowboarder, pedestrian,
  passenger, cyclist, bicyclist, biker, motorcyclist, chef, baker, driver, worker, farmer, doctor, student, soldier, officer,
  policeman, fireman, firefighter, cop, cowboy, hunter, shopper, traveler, tourist, pitcher, catcher, batter, umpire,
  baseball player, basketball player, football player, soccer player, tennis player, volleyball player, ball player
bicycle: bike, tandem, unicycle, !motor bike, !dirt bike
car: automobile, sedan, suv, hatchback, convertible, coupe, van, minivan, taxi, taxicab, cab, limo, limousine, jeep, !train
  car, !cable car, !car seat, !street car, !railway car
motorcycle: motorbike, motor bike, motor cycle, dirt bike, moped, scooter, motor scooter
airplane: plane, aeroplane, air plane, aircraft, jet, passenger jet, airliner, jetliner, jumbo jet, biplane, seaplane, !jet
  ski
bus: minibus, double decker, school bus, coach bus, trolley, !bus stop, !bus station
train: passenger train, locomotive, train car, railway car, tram, streetcar, street car, trolley car, subway car, caboose,
  !train track, !train station
truck: lorry, pickup, pick up truck, fire engine, firetruck, tow truck, semi trailer
boat: ship, sailboat, motorboat, speedboat, houseboat, tugboat, lifeboat, canoe, kayak, ferry, yacht, catamaran, rowboat,
  gondola, raft, barge, dinghy
traffic light: stoplight, stop light, traffic signal, street light, streetlight
fire hydrant: hydrant
stop sign:
parking meter:
bench: park bench, pew, !bench press
bird: seagull, gull, pigeon, duck, mallard, goose, swan, parrot, parakeet, macaw, owl, eagle, falcon, hawk, vulture, sparrow,
  finch, crow, raven, robin, heron, egret, hummingbird, woodpecker, ostrich, peacock, flamingo, penguin, chicken, rooster,
  turkey, pelican, !bird house, !fried chicken, !chicken breast, !chicken wing, !grilled chicken, !turkey sandwich
cat: kitten, kitty, tabby
dog: puppy, pup, doggy, doggie, mutt, hound, greyhound, terrier, retriever, labrador, beagle, spaniel, collie, sheepdog,
  poodle, bulldog, dachshund, chihuahua, corgi, pug, husky, !hot dog, !corn dog
horse: pony, foal, stallion, mare, colt, !rocking horse
sheep: lamb, ewe, ram, goat
cow: cattle, bull, calf, ox, heifer, steer, buffalo, bison
elephant:
bear: polar bear, grizzly, grizzly bear, panda, !teddy bear, !stuffed bear, !toy bear
zebra: !zebra crossing
giraffe:
backpack: rucksack, knapsack, back pack
umbrella: parasol
handbag: purse, hand bag, shoulder bag, pocketbook, wallet, briefcase
tie: necktie, neck tie, bow tie, !tie dye
suitcase: luggage, baggage, suit case
frisbee: flying disc, flying disk
skis: ski, !water ski, !jet ski, !ski lift, !ski slope, !ski resort, !ski jump, !ski pole
snowboard: snow board
sports ball: soccer ball, tennis ball, basketball, baseball, football, volleyball, ball, !baseball bat, !baseball glove,
  !baseball mitt, !baseball game, !baseball field, !baseball uniform, !baseball cap, !basketball court, !basketball game,
  !football field, !football game, !volleyball court, !ball game, !ball gown
kite:
baseball bat: bat
baseball glove: catcher's mitt, baseball mitt, mitt
skateboard: skate board
surfboard: surf board
tennis racket: racket, racquet, tennis racquet
bottle: water bottle, wine bottle, beer bottle
wine glass: wineglass, glass of wine, champagne glass, goblet
cup: mug, teacup, coffee cup, coffee mug
fork:
knife: pocketknife, butter knife, steak knife
spoon: teaspoon, tablespoon
bowl: container
banana: !banana bread
apple:
sandwich: burger, hamburger, cheeseburger, sub sandwich, panini, turkey sandwich
orange: tangerine, clementine
broccoli:
carrot: !carrot cake
hot dog: hotdog, corn dog
pizza: !pizza box, !pizza parlor
donut: doughnut, bagel
cake: cupcake, cheesecake, pancake, birthday cake, wedding cake, carrot cake
chair: armchair, seat, stool, rocking chair, office chair, !chair lift
couch: sofa, loveseat, settee, recliner, futon
potted plant: houseplant, house plant, pot plant, plant in a pot, plant in pots, flower pot
bed: bunk bed, !flower bed, !bed of flowers, !river bed, !truck bed, !bed of a truck
dining table: table, kitchen table, dinner table, coffee table, desk, computer desk, !table tennis, !table cloth, !table lamp
toilet: toilet seat, commode, urinal, !toilet paper, !toilet brush
tv: television, television set, tv set, monitor, computer monitor, !tv stand, !tv show, !tv remote
laptop: computer, netbook, macbook, notebook computer, laptop computer
mouse: computer mouse, !mickey mouse, !mouse pad
remote: remote control, tv remote, wii remote
keyboard: computer keyboard, !piano keyboard
cell phone: cellphone, mobile phone, smartphone, smart phone, phone, iphone, telephone, !phone booth
microwave: microwave oven
oven: stove, stovetop, range oven, !microwave oven, !toaster oven
toaster: toaster oven
sink: washbasin, wash basin
refrigerator: fridge, freezer
book: textbook, novel, cookbook, !book shelf, !book case
clock: clock tower, alarm clock, wall clock
vase:
scissors: pair of scissors, shears
teddy bear: teddy, teddybear, stuffed bear, toy bear, stuffed animal, plush bear
hair drier: hair dryer, blow dryer, hairdryer
toothbrush: tooth brush
"""
# A young or a full-grown animal, whose first word would be a person: "baby elephant", "adult giraffe".
_YOUNG_ANIMAL = re.compile(
    r"\b(?:baby|adult) (?=(?:bird|duck|cat|dog|horse|sheep|goat|cow|elephant|bear|zebra|giraffe|animal|cub)s?\b)"
)
# "orange" is the fruit at the end of a phrase, and a colour before a thing or another colour.
_ORANGE_COLOUR = re.compile(
    r"\borange (?=(?:and|or) (?:white|black|yellow|red|blue|green|brown|gray|grey|pink|purple)\b"
    r"|(?!(?:and|or|on|in|is|with|next|beside|to|at|from|that|which)\b)[a-z])"
)
_PLURALS = {
    "person": "persons",
    "people": "people",
    "child": "children",
    "skis": "skis",
    "scissors": "scissors",
    "shears": "shears",
    "knife": "knives",
    "goose": "geese",
    "calf": "calves",
    "ox": "oxen",
    "cattle": "cattle",
}


@cache
def _phrases():
    """({phrase: kind, or None where it only hides a word}, a pattern that finds the longest phrase first)."""
    phrases = {}
    for line in re.sub(r",\s*\n\s+", ", ", _WORDS.strip()).splitlines():
        kind, _, words = line.partition(":")
        for word in (kind, *filter(None, (word.strip() for word in words.split(",")))):
            means = None if word.startswith("!") else kind
            for form in (word.lstrip("!"), _plural(word.lstrip("!"))):
                if means is not None or form not in phrases:  # a kind's own phrase counts, whatever another kind hides
                    phrases[form] = means
    longest_first = sorted(phrases, key=len, reverse=True)
    return phrases, re.compile(rf"\b(?:{'|'.join(map(re.escape, longest_first))})\b")


def _plural(phrase):
    """Of what a phrase is about: "glasses of wine", "plants in a pot", "computer mice", "policemen"."""
    head, join, rest = re.fullmatch(r"(.+?)( of a | of | in a | in |$)(.*)", phrase).groups()
    *before, noun = head.split()
    many = _PLURALS.get(noun) or (f"{noun[:-3]}men" if noun.endswith("man") else plural(noun))
    return " ".join([*before, many]) + join + rest


KINDS = tuple(line.partition(":")[0] for line in _WORDS.strip().splitlines() if not line.startswith(" "))


def named_kinds(text):
    """COCO kinds that a text names, in order, each as often as it is named: "two dogs and a hot dog" -> dog, hot dog."""
    phrases, pattern = _phrases()
    text = _YOUNG_ANIMAL.sub("", _ORANGE_COLOUR.sub(" ", text.lower().replace("-", " ")))
    text = re.sub(r"[^a-z' ]+", " . ", text)  # no phrase goes on behind a comma
    return [phrases[found] for found in pattern.findall(text) if phrases[found] is not None]


def chair_rows(captions, truths):
    """{figure: [a row of sums for each caption]}, which `ratio` makes figures of.

    Args:
        captions: list of texts; truths: for each, the kinds that are in its picture.
    """
    rows = {"chair_i": [], "chair_s": [], "recall": [], "words": []}
    for caption, truth in zip(captions, truths, strict=True):
        named = named_kinds(caption)
        invented = [kind for kind in named if kind not in truth]
        rows["chair_i"].append([len(invented), len(named)])
        rows["chair_s"].append([bool(invented), 1])
        rows["recall"].append([len(set(named) & set(truth)), len(set(truth))])
        rows["words"].append([len(caption.split()), 1])
    return rows


class Chair(evaluate.Metric):
    """CHAIRi, CHAIRs, recall and mean length."""

    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Rohrbach et al. 2018, arXiv 1809.02156",
            inputs_description="predictions: list of captions; references: list of lists of COCO kinds in the picture",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}
            ),
        )

    def _compute(self, predictions, references):
        import numpy as np

        return {name: float(ratio(np.sum(rows, 0))) for name, rows in chair_rows(predictions, references).items()}
