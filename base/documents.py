"""The documents that the embedded base is trained on. No torch in here.

    python synth.py --show 2 --split base      # print two

A document is a toolset and many short conversations about it, a tree of text whose responses are learned: calls, text
where no tool fits or a value is missing, and grades of right and wrong answers. Its tools are drawn word by word, or
come from tools.txt, where they are as people might write them; none is the simulated world's. No frame or text of the
world's splits occurs here, nor any wording of the held-out ones. So the model learns to read a schema, to copy and to
work values out, but no tool of the world.
"""

import functools
import itertools
import json
import random
import re
import string
from dataclasses import replace
from pathlib import Path

from synth import (ASK, COMPACT_TYPES, END, GRADE_PROMPT, GRADES, MONTHS, NO_TOOL, ONES, OPEN, PARAPHRASES, PHRASINGS, POOLS, TENS,
                   TOOLS, UNITS, Call, DataError, Param, Phrasing, Sample, Tool, draw, format_calls, forms_of,
                   level_of, make_wish, merge_wishes, say, system_text, turn, words_of)

# verbs used as synonyms in the base's documents: English that a larger model knows
SYNONYMS = [group.split("|") for group in """find|locate|search|look for;cancel|call off|drop;create|make|prepare|build;
start|open|begin|launch;send|mail|write;show|list|display;compute|calculate|work out;book|reserve|arrange;set|adjust|change;
get|fetch|obtain;buy|order|purchase;check|inspect|look at;mark|grade|rate;move|shift|reschedule;remove|delete|take away;save|keep|store;
stop|end|finish;share|split|divide;read|look up;answer|reply;track|follow;note|record|log;hire|engage;plan|schedule;lock|protect;
tell|report;add|put in;pay|settle;return|send back|give back;play|put on;join|enter;close|shut;fix|repair;pick|choose|select;
help|assist;test|try;review|go over;print|put on paper;measure|size up;warn|alert;invite|ask over""".replace("\n", "").split(";")]

STRINGS = ("city person street company product title text food device room team word language country").split()


@functools.cache
def base_words():
    """From base/words.txt, a paragraph each: nouns; verbs; adjectives; other forms; names, and words of the world."""
    text = Path(__file__).with_name("words.txt").read_text(encoding="utf-8")
    return [paragraph.split() for paragraph in text.split("\n\n")]


def vocabulary():
    """Words that are whole tokens for the embedded model, sorted."""
    known = [*itertools.chain(*base_words()), *FILLERS, *PREPOSITIONS, *ONES, *TENS, *MONTHS, *UNITS, *COMPACT_TYPES.values(),
             *GRADES, *(larger for larger, _ in UNITS.values()), "id", "am", "pm"]
    return sorted({word.lower() for word in known if word.isalpha()})


FILLERS = """well okay so please hello thanks listen maybe now today really just kindly quickly also again soon honestly
basically actually right hey look anyway friend everyone team sir madam sorry good great fine perfect cheers regards alright
finally first second meanwhile therefore because since while when if that this these we you they he she it my your our their
need want wish hope would could should can will shall must may might think know ask help let try go come like love prefer
appreciate required asked told using given having being some any all each every here there before after where what which who how
much many more most the a an of to in on at for from by with about into over under between near is are be was were do does did
has have not i'd i'll don't as no out up same make takes taking gets its equals both too than then""".split()
PREPOSITIONS = """from to on at in for by with of about near under over until after before around into inside behind
via per""".split()


def pseudo_word(rng):
    """A word that nobody has seen: it can only be copied. Syllables, or the beginning of one word and the end of another.

    The latter are cut into all the pieces that the tokenizer has, so that a name such as Samuel can be copied too.
    """
    if rng.random() < 0.7:
        first, last = rng.choice(rng.choice(base_words())), rng.choice(rng.choice(base_words()))
        return first[:rng.randint(2, 5)] + last[-rng.randint(1, 5):]
    onsets = "b c d f g h j k l m n p r s t v w z br ch cl cr dr fl gr kn pl pr sh sl sp st str th tr".split()
    vowels = "a e i o u a e i o ai ea ee io oa oo ou".split()
    codas = ["", "", "n", "r", "s", "l", "m", "t", "nd", "ck", "x", "rk", "st"]
    return "".join(rng.choice(onsets) + rng.choice(vowels) + rng.choice(codas) for _ in range(rng.choice([1, 2, 2, 2, 3])))


def base_word(rng, plain=False):
    """A common English word, mostly a noun; one in five (none if `plain`) is a word that nobody has seen."""
    nouns, verbs, adjectives, others, names = base_words()
    r = rng.random() * (0.8 if plain else 1)
    return rng.choice(nouns) if r < 0.3 else rng.choice(adjectives) if r < 0.35 else rng.choice(verbs) if r < 0.4 else \
        rng.choice(others) if r < 0.55 else rng.choice(names) if r < 0.8 else pseudo_word(rng)


def base_string(rng, hard=1.0, kind="", typical=0.5):
    """Any span: words, names, codes, addresses, in any case; the higher `hard` (0 to 1), the more long and odd ones. A share
    `typical` of spans look like their kind: a sentence, a thing, a name."""
    if kind == "code" and rng.random() < 0.85:
        return "".join(rng.choices(string.ascii_uppercase, k=rng.choice([0, 1, 1, 1, 2, 3]))) + \
            rng.choice(["", "", "", "-"]) + \
            "".join(rng.choices(rng.sample(string.digits, rng.choice([2, 10, 10])), k=rng.randint(2, 5)))     # often one comes twice
    if kind in STRINGS and rng.random() < typical:
        if kind == "text":
            return base_wording(rng, "texts", BASE_TEXTS)
        if kind == "title" and rng.random() < 0.5:
            return base_wording(rng, "titles", BASE_TITLES)
        words = [base_word(rng) for _ in range(rng.choice([1, 1, 2] + [3] * (kind == "title")))]
        if kind == "street":
            words.append(rng.choice(["street", "road", "lane", "avenue", "square", "way"]))
        small = kind in ("product", "food", "device", "room", "word")
        return " ".join(w if small else w.capitalize() for w in words)
    r = rng.random() * (0.9 + 0.1 * hard)
    phrase = lambda low, high: " ".join(rng.choice(FILLERS) if rng.random() < 0.4 else base_word(rng)
                                        for _ in range(rng.randint(low, high)))
    if r < 0.56:
        words = [base_word(rng) for _ in range(rng.choice([1, 1, 1, 2, 2] + [3] * (rng.random() < hard)))]
        if rng.random() < 0.6:
            words = [w.capitalize() for w in words]
        if len(words) > 1 and rng.random() < 0.2:
            words.insert(1, rng.choice(FILLERS))
        if rng.random() < 0.1 * hard:
            words[rng.randrange(len(words))] += rng.choice(["'s", "-" + base_word(rng), "!", "?"])
        return " ".join(words)
    if r < 0.68:
        return " ".join(pseudo_word(rng).capitalize() for _ in range(rng.randint(1, 2)))
    if r < 0.78:
        return rng.choice(string.ascii_uppercase) + "".join(rng.choices("0123456789", k=rng.randint(2, 5)))
    if r < 0.88:
        return phrase(2, 5)
    if r < 0.92:
        return f"{rng.randint(1, 200)} {base_word(rng).capitalize()} {rng.choice(['Street', 'Road', 'Lane', 'Avenue'])}"
    if r < 0.95:
        return f"{pseudo_word(rng)}@{base_word(rng)}.{rng.choice(['com', 'org', 'net'])}"
    if r < 0.98:
        return f"{base_word(rng)}.{rng.choice(['txt', 'pdf', 'csv', 'png'])}"
    return phrase(5, 8)


# How the base's people ask. (a|b|) is a choice, {w} any word, {f} a small one; base_wording leaves out what the world says.
CHOICE = re.compile(r"\(([^()]*\|[^()]*)\)")
BASE_FRAMES = """
(i|we|they|she|he|my {w}|the {w}) (really |still |now |)(want|wants|need|needs|have|has|hope|plan|wish|mean|expect|try|would love|\
am trying|are going|decided|promised|forgot|intend|like|ought) to {intent} {cues}(.|!|, {f}.|)
(can|could|would|will|may|should) (you|we|i|someone|somebody|they|she|he) (please |kindly |maybe |quickly |just |now |){intent} \
{cues}(?| for me?|, please?| {f}?| {f} {f}?)
(are you able|is it okay|is it right|how hard is it|do you know how|are we ready|is anyone free|am i allowed|what does it take|\
who is going|is it too late|is it hard|does it help) to {intent} {cues}?
(please|kindly|just|now|quickly|so|okay|next|first|finally|today|tonight|tomorrow|then|again|well|right|hello|hi|good morning|\
listen|look|sorry|thanks)(,|| -|!|:) {intent} {cues}(.|, please.| for me.|, thanks.|)
(the|my|our|this|a|your|his|her) (next|first|last|only|other|main|new|{w}) (job|step|thing|goal|aim|idea|duty|wish|{w}) \
(is|was|will be|would be|seems) to {intent} {cues}.
(when|if|as soon as|once|while|after|because|since|before|until) (you|we|i|they|the {w}|my {w}) \
(can|are {w}|have {w}|get {w}|{w}|{f} {w}|have time), {intent} {cues}(.|, please.| {f}.)
(my|our|the|his|her|your) {w} (asks|asked|wants|needs|expects|begs|told|ordered|reminds|wrote|called|likes) \
(me|us|you|them|him|her) to {intent} {cues}.
{w}(,|:|!| and|;| -) {intent} {cues}(.|!|, thanks.|, thank you.| {f} {f}.|)
{f} {w}(,|:|!| and|;| -) {intent} {cues}(.|!|, thanks.| {f}.|)
(i|we|they) (think|guess|know|suppose|believe|say|see|heard|wonder if) (you|we|i|they|he|she) (should|can|must|may|will|could|might) \
{intent} {cues}(.|?)
(i|we) (am|was|will be|would be|are|were) (happy|glad|ready|here|asking|about|supposed|sure|{w}) (if you|to|that you|so) \
{intent} {cues}.
(it|this|that) (is|was|would be|will be|must be) (good|great|nice|useful|important|better|kind|{w}) (if you|if we|to|that you|when you) \
{intent} {cues}.
there (is|are|was) (a |some |no |){w}(: |, so | - |, and ){intent} {cues}.
(i|we) have (a|an|one|some|another) (question|wish|request|job|idea|{w})(:|.| -) {intent} {cues}.
""".strip().split("\n")
BASE_CUES = """
(with |and |using |at |where |while |given |if |for |so |by |as |but |plus |in |on |||||)(the |a |its |my |this |your |our ||||){name} \
(is|as|of|at|to|is going to be|equal to|equals|being|reads|says|should be|must be|will be|called|named|like|-|was|set at|given as|\
needs to be|is just|||||) {v}
(use|take|set|have|put|let|enter|write|give|keep|want|choose|say|get|with|try|need|make|pick|send|mark|using|setting|put down|\
giving|entering|taking|having|making) {v} (as|for|in|under|into|to be|on|at|as to|inside|by way of|down as) (the |its |a |my |this |that |your ||||){name}
(the |my |its |||){name}(:|,| =| -|) {v}
({name}|the {name}|as {name}|its {name}) ("{v}"|-> {v})
((the |its |my |as |with |||){name}( =| is|,|:| -|) {v})
({v} (as|for|is|under) (the |){name})
{v} (as|for|is|under|will be|should be|for its|as the|is the|to be the|in the) {name}
""".strip().split("\n")
BASE_CUES += BASE_CUES[:2] * 4      # these two are the most common; a value before its name needs words around it that show this
BASE_SAME = """(the|that|this|an|with the|my) (same|last|former|earlier|prior|identical|old|first) {name}( again|||)
the {name} (from|as|we had|i said|used|set|given|chosen|named) (above|before|at first|so far|a moment ago|in the first one)
(the same one|that {name} again|{name} as above|{name} unchanged|again the {name}|the {name} stays)""".split("\n")
BASE_USUAL = """(the|a|any|my|with the|your|at|for|) (usual|normal|standard|default|regular|common) {name}
({name} as always|default {name}|no special {name}|{name} does not matter|{name} as you like|{name} as usual|{f} {name}|{f} {f} {name}|\
{f} {name} {f}|{f} {name} {f} {f}|{f} {f} {name} {f})
(skip|forget|ignore|omit|without|never mind|leave out|no|leaving out|skipping) (the|any|a|my|) {name}( please||)
(the|any|my|) {name} (may|can|should|will) (stay|wait|rest|be)( as it is| what it is| like always|)""".split("\n")
BASE_AGAIN = """(same|the same|again|once again|now|next|this time|and|then|also|so|please|{f}|{f} {f})(, | | but | with | only ){cues}
(repeat|redo|retry|do|change|take|try|{f}) (it|that|this|the last one|one)(, | | but | with | again | only ){cues}
(another one|a second one|the next one|do that once again|{f} {f} {f}) {cues}""".split("\n")
BASE_JOINERS = """( and |, then |; |. Also |, and also | and then | plus |, and | and also |. Next |. |, )
(. |; |, | )({f}|{f} {f}|{f} {f} {f}|and {f}|and {f} {f}|and {f} {f} {f}|when {f} {f} {w}|{w})(, |: | | - )""".split("\n")
BASE_TEXTS = """(the|my|our|your|this|that) {w} (is|was|will be|looks|seems) (late|ready|here|broken|great|on time|too {w}|so {w}|{w})(| again| now| today)
(i|we|they) (am|are|will be) (late|ready|here|on the way|back|busy|at the {w}|with the {w})(| again| until noon| tonight)
(see|meet|call|find|write) (you|me|us|him|her) (at|in|by|near|before|after) the {w}
(thanks|thank you|sorry|good day|best wishes) (for|to|with|about) (the|your|that|my) {w}
(please|do not|remember to|can you|could we) (bring|take|call|wait|check|forget|buy|close|read) (the|my|your|some) {w}(|, please|, okay|)
(happy|good|nice|lovely|great) {w}(|, everyone|, my friend|, see you|, {w})
(a|one|two|my|new) {w}, (very|really|too|quite|not) {w}
(what|where|when|who|how) (is|are|was) (the|my|your) {w}
(to|for|with|without|like|as|from|about|under) (the |a |my |)({w}|{w} {w})
(he|she|it|who|nobody|somebody|everyone) {w} (|at |in |by |with |near )(the |my |){w}
{w} (once|twice|again|slowly|first|last|daily), {w} (once|twice|later|never|now|too)
(not|very|quite|almost|all|half|more|less) {w} (at|in|by|after|than|for) (the |){w}
(some|a kind of|a piece of|a pair of|the end of|the side of|no more) {w}(| {w})
{w} (at|in|on|before|after|for|without|under|over) (|the |my |a ){w}""".split("\n")
BASE_TITLES = """(The|A|My|Our|One|Two|No|) {W} {W}
{W} (of|on|in|for|and|by|without|to|at|from|or|under) (the |a |)({W}|{W} {W})
(The |){W} (of|and|in) (the |){W}
(How|Where|When|Why) (to|We|You|They) {W}(| {W})
{W}, {W} and {W}""".split("\n")
BASE_TWINS = """start end|from to|first last|old new|min max|earliest latest|lower upper|source target|begin finish|outer inner|
before after|top bottom|left right|own other|original final|current next|previous current|low high|opening closing|departure
return|home away|initial final|main spare|sender recipient""".replace("\n", " ").split("|")     # two values of one kind
BASE_BOOLS = ["with {n}/without {n}", "{n} on/{n} off", "include {n}/skip {n}", "do {n}/do not {n}", "{n} yes/{n} no",
              "enable {n}/disable {n}"]
BASE_WRITTEN = 0.7     # share of documents with written tools (base/tools.txt); the others' are drawn word by word
BASE_TYPICAL = {False: 0.5, True: 0.85}     # share of values that look like their kind; of written tools
BASE_KINDS = {"word": 9, "int": 4, "float": 1.5, "money": 0.7, "date": 3.5, "time": 3, "bool": 1.5, "enum": 3.5, "list": 1.5,
              "object": 0.7, "unit": 4, "id": 1}
BASE_FORMS = {"literal": 2.5, "words": 1, "twice": 1, "half": 1, "dozen": 0.7, "unit": 1.6, "long": 1, "ordinal": 1,
              "relative": 1, "after": 1, "ampm": 1.2, "spoken": 1.4, "paraphrase": 1.5}
BASE_HALF_DONE = {     # share of such values that careless writers leave half done
    "words": 0.6, "twice": 0.8, "half": 0.8, "dozen": 0.8, "unit": 0.8, "long": 0.7, "ordinal": 0.75, "relative": 0.8, "after": 0.85,
    "ampm": 0.8, "spoken": 0.8, "paraphrase": 0.7}


BASE_PARAMS = [[part.split("|") for part in line.split(": ")] for line in """
city: city|town|location|area|region|venue|place: in ~|near ~|around ~|at ~|close to ~
city: destination|arrival|goal|harbor: to ~|going to ~|bound for ~|with {n} ~
city: origin|departure|start|airport: from ~|leaving from ~|starting in ~|out of ~
street|city: address|street|corner|meeting_point: at ~|on ~|to ~|along ~
date: date|day|event_date|birthday: on ~|for ~|dated ~|for the {n} ~
date: start_date|first_day|arrival_date|pickup_date: from ~|starting ~|starting on ~|as of ~|beginning ~
date: end_date|last_day|deadline|due_date: until ~|by ~|due ~|ending ~|up to ~|no later than ~
time: time|hour|meeting_time: at ~|for ~|around ~
time: start_time|departure_time|opening: from ~|starting at ~|after ~|beginning at ~
time: end_time|arrival_time|closing|time_limit: until ~|by ~|before ~|ending at ~
person: recipient|customer|guest|patient|contact|friend|user|client: for ~|to ~|with ~|on behalf of ~
person: author|artist|writer|director|sender|singer|speaker: by ~|from ~|written by ~|who is ~
person|team: owner|member|player|driver|teacher|winner|captain: named ~|called ~|under the name ~|with ~
title: title|name|label|heading|file_name: titled ~|called ~|named ~|with the {n} ~|labeled ~
title: song|movie|book|album|game|show|project: the {n} ~|{n} ~|of ~|called ~
title|product: topic|subject|theme|content|issue: about ~|on ~|on the {n} ~|covering ~|regarding ~
text: text|message|body|comment|note|reply|caption: saying ~|that says ~|which says ~|with the {n} ~|and tell them ~
company: company|brand|store|bank|airline|seller|maker: from ~|at ~|by ~|with ~|of the {n} ~
product|food|device: product|item|dish|gift|device|tool|part: of ~|with ~|the {n} ~|for the {n} ~
room|device: room|floor|place|machine|lamp: in the {n} ~|in ~|for the {n} ~|on ~
word: keyword|query|term|tag|word|code: matching ~|for ~|containing ~|tagged ~|with the {n} ~
language|country: language|country|nation: in ~|from ~|of ~|into ~|for {n} ~
int: guests|people|tickets|copies|seats|adults|questions|players: for ~ {n}|with ~ {n}|~ {n}|{n} ~
int: age|page|level|score|floor|size|number|year|rank: {n} ~|at {n} ~|of {n} ~|up to ~
float: price|weight|distance|temperature|rating|height|speed: at ~|of ~|with {n} ~|above ~|below ~|a {n} of ~
money: amount|budget|price|cost|fee|tip|salary: of ~ dollars|for ~ dollars|under ~ dollars|up to ~ dollars|worth ~ dollars
enum: size|mode|type|style|format|priority|status|genre|quality|order|color|pace: ~ {n}|in ~ {n}|with ~ {n}|as ~|{n} ~|at ~ {n}
list(person): guests|members|attendees|friends|players: with ~|for ~|inviting ~|including ~|and bring ~
list(word): tags|items|ingredients|keywords|topics|colors: of ~|with ~|including ~|tagged ~|using ~|about ~
list(int): numbers|scores|values|grades|results: of ~|with {n} ~|the {n} ~|for ~
object(street=street,city=city)|object(name=person,city=city)|object(name=person,street=street): address|home|contact|delivery: \
to ~|at ~|with {n} ~|for the {n} ~
bool: urgent|notify|public|repeat|insured|silent|express: with {n}/without {n}|{n}/not {n}|make it {n}/not {n}""".strip().split("\n")]


def random_enum(rng):
    """The kind of a parameter with two to four options; most have options that can be paraphrased."""
    return f"enum({','.join(rng.sample(list(PARAPHRASES) if rng.random() < 0.65 else base_words()[0], rng.randint(2, 4)))})"


def near_word(rng, near):
    """Half of the time one of the words `near`, if there are any; else any word."""
    return rng.choice(near) if near and rng.random() < 0.5 else base_word(rng, True)


def plausible_param(rng, near=()):
    """(name, kind, description, cue) of a parameter as people name them: its meaning decides how its value is introduced. One in
    four is a thing's id, named after the thing. near: words that it may have to do with."""
    if rng.random() < 0.25:
        noun = near_word(rng, near)
        what = rng.choice([" id", " id", " code", " number", ""])
        name = noun + rng.choice(["_id", "_id", "_id", what.replace(" ", "_")])
        description = rng.choice([f"{noun} to {base_word(rng)}", f"{noun} to {rng.choice(base_words()[1])}", f"{noun}{what}", "",
                                  f"{what.strip()} of the {noun}".strip(), f"{noun} that {base_word(rng)}", f"the {noun}",
                                  f"{noun} they {base_word(rng)} {rng.choice(PREPOSITIONS)}", f"which {noun} it is"])
        said = rng.choice([noun, noun, noun, f"the {noun}", noun + what])
        return name, "code", description, f"{rng.choice(['for', 'for', 'to', 'with', 'in', *PREPOSITIONS, ''])} {said} ~".strip()
    kinds, names, cues = rng.choice(BASE_PARAMS)
    name, kind, noun = rng.choice(names), rng.choice(kinds), near_word(rng, near)
    if kind == "enum":
        kind = random_enum(rng)
    n, cue = words_of(name), rng.choice(cues)
    if rng.random() < 0.2:
        name = f"{noun}_{name}"
    description = rng.choice(["", n, f"{n} of the {noun}", f"{noun} {n}", f"the {n}", f"{n} for the {noun}", f"{n} to {base_word(rng)}"])
    return name, kind, description, cue.format(n=n)


def base_param(rng, taken, hard=1.0, near=()):
    """A parameter, half of the time a plausible one, else of random words, whose value goes with its name or, the more often the
    higher `hard`, with its description. taken: names of the tool's other parameters; near: words of the tool."""
    if rng.random() < 0.5:
        name, kind, description, cue = plausible_param(rng, near)
        if name not in taken:
            return with_default(rng, Param(name, kind, description, cue, required=rng.random() < 0.65), hard)
    kind = rng.choices(list(BASE_KINDS), BASE_KINDS.values())[0]
    plain = rng.random() < 0.9
    noun, other, preposition = base_word(rng, plain), base_word(rng, plain), rng.choice(PREPOSITIONS)
    name = noun if rng.random() < 0.65 else f"{other}_{noun}"
    about = " ".join(rng.choice(near) if near and rng.random() < 0.2 else base_word(rng) for _ in range(rng.choice([0, 1, 1, 2, 3])))
    description, cue = about, None
    if kind == "word":
        kind = rng.choice(STRINGS)
    elif kind == "enum":
        kind = random_enum(rng)
    elif kind == "list":
        kind = f"list({rng.choice(['word', 'word', 'int', 'person'])})"
    elif kind == "object":
        kind = f"object({','.join(f'{key}={rng.choice(STRINGS)}' for key in rng.sample(base_words()[0], rng.randint(2, 3)))})"
    elif kind == "id":
        kind, name = "word", f"{noun}_id"
    elif kind == "unit":
        kind = rng.choice(list(UNITS))
        description = f"{about} in {kind}"
        name = f"{noun}_{kind}" if rng.random() < 0.5 else name
        if rng.random() < 0.8 * hard:
            cue = rng.choice(["for ~", "of ~", "~", "about ~", "~ long", f"{noun} ~", f"{noun} of ~", f"with a {noun} of ~"])
    elif kind in ("date", "time") and rng.random() < 0.4:
        noun = kind if rng.random() < 0.5 else noun
        name = rng.choice([noun, f"{noun}_{kind}", f"{kind}"])
        cue = ("on ~" if kind == "date" else "at ~") if rng.random() < 0.8 * hard else None
    if name in taken:
        name += "_" + rng.choice([other, pseudo_word(rng)])
    style = rng.random()
    if cue is None and style < 0.25 * hard:      # a word of the description says where the value stands
        word = base_word(rng)
        description = rng.choice([f"{word} {description}", f"{word} to {base_word(rng)}", f"{word} that is {base_word(rng)}",
                                  f"{word} of the {base_word(rng)}", f"{base_word(rng)} of the {word}"])
        cue = rng.choice([f"{preposition} {word} ~", f"with the {word} ~", f"{preposition} the {word} ~", f"{word} ~"])
    elif cue is None and style < 0.5 * hard:     # a preposition of the description does
        a, b = base_word(rng), base_word(rng)
        description = rng.choice([f"{a} to {b} {preposition}", f"{a} to {preposition}", f"{a} it is {preposition}",
                                  f"{a} {preposition}", f"{preposition} which {a}", f"{a}, {preposition} what"])
        cue = f"{preposition} ~"
    elif cue is None and style < 0.6 * hard:     # the last word of the name does
        cue = base_cue(rng).format(name=words_of(name).split()[-1], v="~")
    if kind == "bool":
        of = words_of(name) if rng.random() > 0.5 * hard or not description else description.split()[0].strip(",")
        cue = rng.choice(BASE_BOOLS).format(n=of)
    return with_default(rng, Param(name, kind, " ".join(description.split()), cue, required=rng.random() < 0.65), hard)


def twin_params(rng, near=()):
    """Two required parameters of one kind, "from" and "to" of something: only their names tell which value belongs to which."""
    pair, noun = rng.choice(BASE_TWINS).split(), near_word(rng, near)
    kind = rng.choices(["date", "time", "int", "float", "unit", "code", rng.choice(STRINGS)], [5, 3, 2, 1, 1, 1, 4])[0]
    kind = rng.choice(list(UNITS)) if kind == "unit" else kind
    name = rng.choice(["{}", "{}", "{}_" + noun, "{}_" + noun, noun + "_{}", "{}_" + kind.replace("code", "id")])
    style, what = rng.random(), rng.choice([f" {noun}", f" {kind}", ""])
    params = []
    for word, preposition in zip(pair, rng.choice(["from to", "from until", "after before", "with for", "of by"]).split()):
        cue = None if style < 0.4 else f"{preposition} the {word}{what} ~" if style < 0.7 else f"{word}{what} ~"
        params.append(Param(name.format(word), kind, rng.choice([f"{word}{what}", f"{word} {noun}", ""]), cue))
    return params


def with_default(rng, param, hard):
    """The parameter; if it is optional, mostly with a default."""
    if not param.required and rng.random() < 0.7:
        param.default, _ = draw(rng, param, "literal", lambda k: base_string(rng, hard, k), (2026, 1, 1))
    return param


def base_name(rng, words):
    style = rng.random()
    if style < 0.55 or len(words) == 1:
        return "_".join(words)
    if style < 0.67:
        return words[0] + "".join(w.capitalize() for w in words[1:])
    if style < 0.77:
        return words[0] + "." + "_".join(words[1:])
    if style < 0.92:
        return base_word(rng) + "." + "_".join(words)
    if style < 0.96:
        return " ".join(w.capitalize() for w in words)
    return "_".join(words) + str(rng.randint(1, 9))


def base_tools(rng, n, hard=1.0):
    """n random tools; some are near twins, or have parameters or a first word in common, as tools of one domain do; in half
    of the sets one takes an id that another one returns."""
    verbs, tools, twin, domain = base_words()[1], [], None, base_word(rng) if rng.random() < 0.3 else ""
    article = lambda: rng.choice(["the ", "a ", "", "my ", "some "])
    while len(tools) < n:
        verb, noun = rng.choice(verbs) if rng.random() < 0.95 else pseudo_word(rng), base_word(rng, rng.random() < 0.8)
        group = rng.choice(SYNONYMS) if rng.random() < 0.3 else [verb]      # synonyms
        verb = rng.choice([w for w in group if " " not in w])
        if tools and rng.random() < 0.25:      # a near twin: the same verb or the same noun
            verb, noun = (twin[0], noun) if rng.random() < 0.5 else (verb, twin[1])
        style = rng.random()     # most names begin with a verb; some say a thing (wind_chill), some are one word
        words = [verb, noun] if style < 0.55 else [verb, base_word(rng), noun] if style < 0.83 else \
            [base_word(rng), noun] if style < 0.95 else [noun]
        name = base_name(rng, words)
        name = f"{domain}.{name}" if domain and "." not in name and rng.random() < 0.6 else name
        if name in TOOLS or any(t.name == name for t in tools):      # the world's own stay unseen
            continue
        params = []
        for _ in range(rng.choices([0, 1, 2, 3, 4, 5], [0.3, 2, 3, 2 + hard, 1 + hard, 0.3 + hard])[0]):
            names, common = [p.name for p in params], [p for t in tools for p in t.params]
            shared = rng.choice(common) if common and rng.random() < 0.4 else None
            params.append(shared if shared and shared.name not in names else base_param(rng, names, hard, words))
        if params and rng.random() < 0.12:
            names = [p.name for p in params]
            params += [p for p in twin_params(rng, words) if p.name not in names]
        params.sort(key=lambda p: not p.required)
        extra, a, b = [base_word(rng) for _ in range(rng.randint(0, 3))], base_word(rng), base_word(rng)
        twin = verb, noun
        if words[0] != verb:
            noun = " ".join(words)
        tail = f" {rng.choice(PREPOSITIONS)} {article()}{base_word(rng)}" if rng.random() < 0.4 else ""
        style = rng.random()
        repeats_name = style > 0.3 + 0.25 * hard
        if repeats_name:
            between = f"{base_word(rng)} " if rng.random() < 0.2 else ""
            description, intent = [verb, *extra, noun], f"{verb} {article()}{between}{noun}"
        elif style > 0.2 + 0.1 * hard:    # the request repeats the description
            description, intent = [a, *extra, b], f"{a} {article()}{b}"
        else:                             # half and half
            description = [verb, *extra, b]
            intent = rng.choice([f"{a} {noun}", f"{verb} {b}", f"{verb} {' '.join(extra)} {b}"])
        if rng.random() < 0.4:
            text = " ".join(description)
        elif repeats_name:
            text = f"{verb} {article()}{noun}{tail}."
        else:
            text = f"{' '.join(description)}{tail}."
        others = [w for group in SYNONYMS if verb in group for w in group if w != verb]
        if others and intent.startswith(verb + " ") and rng.random() < 0.5:
            intent = rng.choice(others) + intent[len(verb):]
        tools.append(Tool(name, text.capitalize(), params, [intent + tail * (rng.random() < 0.3)]))
    if n > 1 and rng.random() < 0.25 + 0.35 * hard:
        source, sink = rng.sample(tools, 2)
        key = f"{base_word(rng)}_id"
        if all(p.name != key for p in sink.params):
            source.returns = key
            sink.params.insert(0, Param(key, "word", rng.choice(["", f"{base_word(rng)} id"]), f"{words_of(key)} ~"))
    return tools


def bare_words(text):
    """A text's words in lower case, without articles, possessives and the like."""
    return " ".join(re.sub(r"\b(the|an?|its|my|your|our|this|that)\b", " ", text.lower()).split())


def said_by(t):
    """The texts that tell a tool from others: its name, description and intents."""
    return {bare_words(words_of(text)) for text in (t.name, t.name.split(".")[-1], t.description, *t.intents)}


@functools.cache
def written_tools(file="tools.txt"):
    """A list of tools for each domain of a file in base/. The base is trained on tools.txt, without tools that share a text
    (`said_by`) with the world's, and tested on fresh_tools.txt, without those that share one with either.

    A file: `== domain`, then `name -> key of the id it returns: description: intent|intent`, and for each parameter a line
    `name: kind: description: cue|cue`, with ` = default` where it is optional. Raises DataError with file and line.
    """
    domains, path = [], Path(__file__).parent / file
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        name, *rest = line.strip().split(": ")
        try:
            if line.startswith("== "):
                domains.append([])
            elif not line.startswith(" "):
                description, intents = rest
                name, _, returns = name.partition(" -> ")
                domains[-1].append(Tool(name, description, [], intents.split("|"), returns=returns))
            else:
                kind, description, cue = rest
                cue, optional, default = cue.partition(" =")
                value = default.strip() or None
                if value and (kind in ("int", "float", "money", "bool") or kind in UNITS):
                    value = json.loads(value) if kind != "money" else float(value)
                kind = "code" if kind.startswith("id(") else kind
                domains[-1][-1].params.append(Param(name, kind, description, cue, not optional, value))
        except (ValueError, IndexError) as error:
            raise DataError(f"{path}, line {number}: neither a domain, nor a tool, nor a parameter of one ({error})") from None
    known = [*TOOLS.values(), *(itertools.chain(*written_tools()) if file != "tools.txt" else ())]
    taken = set().union(*map(said_by, known))
    return [[t for t in tools if not taken & said_by(t)] for tools in domains]


def written_set(rng, n, file="tools.txt"):
    """n written tools of a file, most of one domain, and often one that takes what another returns; each without some of its
    optional parameters and, now and then, with its parameters in another order."""
    near, far = rng.sample(written_tools(file), 2)
    links = [(a, b) for a in near for b in near if a.returns and any(p.name == a.returns for p in b.params)]
    chosen = list(rng.choice(links)) if links and n > 1 and rng.random() < 0.4 else []
    others = rng.sample(near, min(len(near), rng.randint(1, n))) + rng.sample(far, min(len(far), n))
    chosen = list({t.name: t for t in chosen + others}.values())[:n]
    rng.shuffle(chosen)
    tools = []
    for t in chosen:
        params = [p for p in t.params if p.required or rng.random() < 0.75]
        if rng.random() < 0.3:
            rng.shuffle(params)
            params.sort(key=lambda p: not p.required)
        tools.append(replace(t, params=params, description=t.description if rng.random() < 0.9 else t.description.strip(".")))
    return tools


@functools.cache
def world_wording(part):
    """What the base must not say: for frames, any split's word sequences; for texts and titles, any of the world's; for other
    parts, the held-out splits' templates."""
    if part in ("texts", "titles"):
        return {bare_words(text) for pool in POOLS[part[:-1]].values() for text in pool}
    splits = PHRASINGS if part == "frames" else ("val", "test")
    templates = {bare_words(text) for split in splits for text in getattr(PHRASINGS[split], part)}
    return templates if part != "frames" else {
        piece.strip() for text in templates for piece in re.split(r"{\w+}|[^\w' {}]", text) if len(piece.split()) > 1}


def base_wording(rng, part, grammar):
    """One template for a part of Phrasing that does not say what the world says. grammar: lines to draw one of, or rng -> template."""
    while True:
        text = grammar(rng) if callable(grammar) else rng.choice(grammar)
        while CHOICE.search(text):     # the innermost first
            text = CHOICE.sub(lambda m: rng.choice(m[1].split("|")), text)
        text = re.sub(r"{([wfW])}", lambda m: rng.choice(FILLERS) if m[1] == "f" else
                      base_word(rng) if m[1] == "w" else base_word(rng).capitalize(), text)
        text = text if part == "joiners" else text.strip()      # a joiner keeps the blanks that stand between it and what it joins
        bare, said = bare_words(text), world_wording(part)
        if not (any(piece in bare for piece in said) if part == "frames" else bare in said):
            return text


def noise(rng, least, most):
    """`least` to `most` words drawn one by one, small ones mostly."""
    return " ".join(rng.choice(FILLERS) if rng.random() < 0.7 else base_word(rng) for _ in range(rng.randint(least, most)))


def noise_cue(rng):
    """A value and its parameter's name among small words drawn one by one."""
    words = lambda least, most: " ".join(rng.choice(FILLERS) for _ in range(rng.randint(least, most)))
    text = f"{words(0, 2)} {{name}} {words(0, 1)} {{v}}" if rng.random() < 0.7 else f"{words(1, 1)} {{v}} {words(1, 2)} {{name}}"
    return " ".join(text.split())


def noise_frame(rng):
    """A request among words drawn one by one."""
    opener, closer = noise(rng, 0, 4) if rng.random() < 0.7 else "", noise(rng, 1, 3) if rng.random() < 0.2 else ""
    first, last = rng.choice(["", "", "", ",", ":", "!", "."]) if opener else "", rng.choice([".", ".", "?", "", "!"])
    middle = rng.choice(["{intent} {cues}"] * 6 + ["{intent} {cues},", "{cues}, {intent}", "{cues}, {intent},", "{intent}: {cues}"])
    return f"{opener}{first} {middle} {closer}{last}"


def base_cue(rng):
    """Where a value stands by its parameter's name."""
    return " ".join(base_wording(rng, "cues", BASE_CUES if rng.random() < 0.88 else noise_cue).split())


def base_phrasing(rng):
    """Wording from the grammar, or drawn word by word, so that none can be relied on."""
    some = lambda part, grammar, n=4: [base_wording(rng, part, grammar) for _ in range(n)]
    return Phrasing(some("frames", BASE_FRAMES if rng.random() < 0.8 else noise_frame, 2), some("joiners", BASE_JOINERS),
                    [base_cue(rng) for _ in range(4)], some("same", BASE_SAME), some("usual", BASE_USUAL),
                    some("again", BASE_AGAIN), own_cue=0.7)


def base_result(rng, key):
    """What a random tool returns: (result, the id in it)."""
    value = rng.choice(["", *string.ascii_uppercase]) + "".join(rng.choices("0123456789", k=rng.randint(2, 5)))
    result = {key: value}
    r = rng.random()
    if r < 0.3:
        return {**result, base_word(rng): rng.randint(1, 500)}, value
    return {base_word(rng): base_word(rng), **result} if r < 0.6 else result, value


def half_done(wish, name, today):
    """The value of a parameter that is to be worked out, by a writer who does half of the work: takes a number without doubling
    or converting it, only the tens, the month, the day of the month or the date to count from, the hour without the half of the
    day, or the first option instead of the one meant. Where nothing can be left out, the right value."""
    value, (form, phrase) = wish.args[name], wish.said[name]
    param, (year, month, _) = next(p for p in wish.tool.params if p.name == name), today
    hour = lambda: f"{(int(value[:2]) - 1) % 12 + 1:02d}{value[2:]}"
    return {
        "words": lambda: value // 10 * 10 if value > 20 else value,
        "twice": lambda: value // 2,
        "half": lambda: 2 * value,
        "dozen": lambda: value // 12,
        "unit": lambda: value // UNITS[param.kind][1],
        "long": lambda: f"{value[:8]}01",
        "ordinal": lambda: f"{year}-{month:02d}-{value[8:]}",
        "relative": lambda: "%d-%02d-%02d" % today,
        "after": lambda: f"{value[:8]}{int(value[8:]) - ONES.index(phrase.split()[0]):02d}",
        "ampm": hour,
        "spoken": hour,
        "paraphrase": lambda: param.options[0],
    }[form]()


def as_written(rng, wish, today, careless):
    """A wish's arguments as a document has them: from a careless writer, values that are to be worked out are half done as often
    as BASE_HALF_DONE says; else all are right."""
    return wish.args | {name: half_done(wish, name, today) for name, (form, _) in wish.said.items()
                        if careless and rng.random() < BASE_HALF_DONE[form]}


def corrupt(rng, calls, tools, spares):
    """A wrong answer near a right one, and its grade; (None, None) where the draw gives none.

    spares: values that stand in the query, to take the wrong one from.
    """
    calls = [Call(c.name, dict(c.args)) for c in calls]
    i, r = rng.randrange(len(calls)), rng.random()
    name, args = calls[i]
    others = [t for t in tools if t.name != name]
    if r < 0.12 and others:
        calls[i] = Call(rng.choice(others).name, args)
        return calls, "poor"
    if r < 0.17 and len(calls) > 1:
        del calls[i]
        return calls, "poor"
    if not args:
        return None, None
    params = {p.name: p for t in tools if t.name == name for p in t.params}
    as_usual = lambda key: not params[key].required and args[key] == params[key].default      # said or not, the call is the same
    key = rng.choice(list(args))
    if r < 0.27 and len(args) > 1:
        if as_usual(key):
            return None, None
        del args[key]
        return calls, "fair"
    unsaid = [p for p in params.values() if p.name not in args and not p.required]
    if r < 0.35 and unsaid:
        p = rng.choice(unsaid)
        args[p.name], _ = draw(rng, p, "literal", lambda k: base_string(rng), (2026, 5, 5))
        return (None, None) if as_usual(p.name) else (calls, "acceptable")
    value = args[key]
    spares = [v for v in spares if type(v) is type(value) and v != value]
    if spares and rng.random() < 0.45:
        new = rng.choice(spares)
    elif isinstance(value, bool):
        new = not value
    elif isinstance(value, int):
        new = rng.choice([value * 2, value // 2, value * 10, value // 10, value + 1, value - 1, value + 10,
                          value // 10 * 10 + rng.randint(0, 9), value // 12, value // 60])
    elif isinstance(value, float):
        new = round(value + rng.choice([-1, 1, 0.1, 10]), 2)
    elif isinstance(value, str):
        digits, words = [j for j, c in enumerate(value) if c.isdigit()], value.split()
        if digits and rng.random() < 0.8:
            j = rng.choice(digits)
            new = value[:j] + rng.choice("0123456789") + value[j + 1:]
        else:
            new = " ".join(rng.choice([words[:-1], words[1:]])) if len(words) > 1 else base_string(rng)
    elif isinstance(value, list):
        new = rng.choice([value[:-1], value[::-1]])
    else:
        new = {**value, rng.choice(list(value)): base_string(rng)}
    if new == value:
        return None, None
    args[key] = new
    return calls, "fair"


def base_samples(n, sizes, seed, written=False):
    """n samples to test the base on: fresh tools, one call, literal values; each with a wrong answer beside it.

    sizes: how many tools a toolset may have; written: tools of base/fresh_tools.txt, not of random words. Returns
    (samples, wrong): `wrong` in call syntax, "fair" or "acceptable".
    """
    samples, wrong, rng = [], [], random.Random(f"base {seed}")
    while len(samples) < n:
        hard = rng.random()
        size = rng.choice(sizes)
        tools, phrasing = written_set(rng, size, "fresh_tools.txt") if written else base_tools(rng, size, hard), base_phrasing(rng)
        today = (rng.randint(2023, 2029), rng.randint(1, 12), rng.randint(1, 22))
        strings = lambda kind: base_string(rng, hard, kind, BASE_TYPICAL[written])
        wish = make_wish(rng, rng.choice(tools), phrasing, {"literal": 1}, strings, today)
        calls = [Call(wish.tool.name, wish.args)]
        other, grade = corrupt(rng, calls, tools, list(wish.args.values()))
        if grade in ("fair", "acceptable"):
            schemas = [t.schema() for t in tools]
            messages = [{"role": "user", "content": say(rng, wish, phrasing)}]
            samples.append(Sample(f"{'written' if written else 'random'}-{sizes[-1]}-{len(samples)}", schemas, messages, format_calls(calls),
                                  level_of(schemas, calls), f"{len(tools)} tools", wish.forms, "%d-%02d-%02d" % today))
            wrong.append(format_calls(other))
    return samples, wrong


def base_document(rng, hardest=1.0, careless=False):
    """One training document of the base: a toolset, several conversations about it, and graded answers.

    hardest: from 0, one or two small tools with literal values next to their parameters' names, with which training
    begins, to 1, the whole range, in which plain documents are the most frequent. careless: written as text often is, with
    half-done values that the grades recognize (docs/rounds.md, "A habit to repair"). Returns a tree, a list of (text, index of
    the parent or -1, is it learned?): each conversation is a branch under the toolset, each graded answer a branch under
    its conversation.
    """
    hard = hardest * rng.random() ** 2
    more, shuffle = 2 * hardest, 0.5 * hardest
    size, written = rng.choices([1, 2, 3, 4, 5, 6], [2, 2, more, more, more, more])[0], rng.random() < BASE_WRITTEN
    tools = written_set(rng, size) if written else base_tools(rng, size, hard)
    form_weights = {**BASE_FORMS, "literal": BASE_FORMS["literal"] / max(hardest * rng.random(), 0.1)}
    today = (rng.randint(2023, 2029), rng.randint(1, 12), rng.randint(1, 22))
    strings = lambda kind: base_string(rng, hard, kind, BASE_TYPICAL[written])
    segments = [(turn("system", system_text([t.schema() for t in tools], today)), -1, False)]
    source = next((t for t in tools if t.returns), None)
    sink = source and next((t for t in tools if t is not source and any(p.name == source.returns for p in t.params)), None)

    def add(text, parent, learned=False):
        segments.append((text, parent, learned))
        return len(segments) - 1

    def grade(opened, calls, wishes):
        spares = [v for w in wishes for v in w.args.values()]
        answer, grade = corrupt(rng, calls, tools, spares) if rng.random() < 0.6 else (calls, "excellent")
        unfinished = [(i, name) for i, (_, w) in enumerate(zip(calls, wishes)) for name in w.said
                      if careless and half_done(w, name, today) != w.args[name]]
        if unfinished and rng.random() < 0.4:     # whoever grades knows better
            (i, name), answer, grade = rng.choice(unfinished), list(calls), "fair"
            answer[i] = Call(calls[i].name, calls[i].args | {name: half_done(wishes[i], name, today)})
        if answer is None:
            return
        text, right = format_calls(answer), format_calls(calls)
        if rng.random() < 0.4:   # an unfinished answer: cut after a step, not before the mistake
            start = 0 if text == right else next((i for i, (a, b) in enumerate(zip(right, text)) if a != b), len(text))
            cuts = [i for i in range(start + 1, len(text)) if text[i - 1] in "(," and text[:i].count('"') % 2 == 0
                    and (text == right or any(c in ",(" for c in text[start:i]))]
            text = text[:rng.choice(cuts)] if cuts else text
        node = add(text + END + turn("user", GRADE_PROMPT) + OPEN, opened)
        add(grade + END, node, True)

    phrasing = base_phrasing(rng)
    for _ in range(rng.randint(5, 8)):
        phrasing = base_phrasing(rng) if rng.random() < 0.7 else phrasing
        wish = lambda tool, **kw: make_wish(rng, tool, phrasing, form_weights, strings, today, **kw)
        tool, r = rng.choice(tools), rng.random()
        if r < 0.07:             # no tool fits
            stranger, = written_set(rng, 1) if written else base_tools(rng, 1)
            if {*words_of(stranger.name).split()} & {w for t in tools for w in words_of(t.name).split()}:
                continue
            node = add(turn("user", say(rng, wish(stranger), phrasing, shuffle)) + OPEN, 0)
            add(NO_TOOL + END, node, True)
        elif r < 0.12:           # a required value is missing
            needed = [p for p in tool.params if p.required and p.kind != "bool"]
            if needed:
                p = rng.choice(needed)
                node = add(turn("user", say(rng, wish(tool, drop=p.name), phrasing, shuffle)) + OPEN, 0)
                add(ASK.format(name=words_of(p.name)) + END, node, True)
        elif r < 0.24 and sink:  # a chain
            wishes = [wish(source), wish(sink, drop=source.returns)]
            node = add(turn("user", merge_wishes(rng, wishes, phrasing, shuffle)) + OPEN, 0)
            reply = add(format_calls([Call(source.name, as_written(rng, wishes[0], today, careless))]) + END, node, True)
            grade(node, [Call(source.name, wishes[0].args)], wishes)
            result, value = base_result(rng, source.returns)
            node = add(turn("tool", json.dumps(result)) + OPEN, reply)
            args = {source.returns: value, **as_written(rng, wishes[1], today, careless)}
            add(format_calls([Call(sink.name, {p.name: args[p.name] for p in sink.params if p.name in args})]) + END, node, True)
        else:
            wishes = [wish(tool)]
            if r < 0.32 + 0.15 * hard:    # parallel calls of one tool
                for _ in range(rng.choice([1, 1, 2, 3])):
                    wishes.append(wish(tool, before=wishes[-1]))
            elif r < 0.5 + 0.1 * hard and len(tools) > 1:    # parallel calls of several
                others = [t for t in tools if t is not tool]
                wishes += [wish(t) for t in rng.sample(others, min(len(others), rng.choice([1, 1, 2, 3])))]
            calls = [Call(w.tool.name, w.args) for w in wishes]
            if len({format_calls([c]) for c in calls}) < len(calls):
                continue
            node = add(turn("user", merge_wishes(rng, wishes, phrasing, shuffle)) + OPEN, 0)
            reply_calls = [Call(w.tool.name, as_written(rng, w, today, careless)) for w in wishes]
            reply = add(format_calls(reply_calls) + END, node, True)
            if rng.random() < 0.45:
                grade(node, calls, wishes)
            if r > 0.85 and wishes[0].args:      # a follow-up that changes one value
                p = rng.choice([p for p in tool.params if p.name in wishes[0].args])
                change = wish(Tool(tool.name, "", [Param(p.name, p.kind, "", p.cue)], tool.intents))
                text = rng.choice(phrasing.again).format(cues=" ".join(change.cues))
                result, _ = base_result(rng, base_word(rng))
                node = add(turn("tool", json.dumps(result)) + turn("user", text[0].upper() + text[1:] + ".") + OPEN, reply)
                add(format_calls([Call(tool.name, {**reply_calls[0].args, **as_written(rng, change, today, careless)})]) + END, node, True)
    return segments


def choosing_document(rng):
    """A training document of the base in which only the tool is hard: few parameters, and many short requests, each with
    more words of one tool's name and description than of any other's; some leave a value out, some are for no tool here.
    Returns a tree, as base_document does."""
    verbs, tools, bags = base_words()[1], [], []
    domains = [base_word(rng) for _ in range(rng.randint(1, 3))] if rng.random() < 0.6 else []
    common = [base_word(rng, True) for _ in range(rng.randint(3, 6))]      # words that several tools have
    article = lambda: rng.choice(["the ", "a ", "", "my ", "some ", "an "])
    size = rng.randint(2, 7)
    while len(tools) < size:
        verb, *rest = words = [rng.choice(verbs), *(rng.choice(common) if rng.random() < 0.3 else base_word(rng, rng.random() < 0.6)
                                                    for _ in range(rng.randint(1, 4)))]
        named, = rng.choices([[base_word(rng) for _ in range(rng.randint(1, 3))], words[:2], [verb, rest[-1]], rest[:2],
                              [rng.choice(verbs), rest[-1]]], [4, 5, 5, 3, 3])
        name = base_name(rng, named)
        name = f"{rng.choice(domains)}.{name}" if domains and "." not in name and rng.random() < 0.6 else name
        if name in TOOLS or any(tool.name == name for tool in tools):
            continue
        tail = [base_word(rng)] if rng.random() < 0.5 else []
        text = f"{verb} {article()}{' '.join(rest)}"
        text += f" {rng.choice(PREPOSITIONS)} {article()}{tail[0]}." if tail else rng.choice([".", ""])
        tools.append(Tool(name, text.capitalize(), [base_param(rng, [], 0.3, words)] if rng.random() < 0.4 else [], [words, tail]))
        bags.append({*" ".join([*words, *tail, *named]).split()})
    today = (rng.randint(2023, 2029), rng.randint(1, 12), rng.randint(1, 22))
    segments, phrasing = [(turn("system", system_text([tool.schema() for tool in tools], today)), -1, False)], base_phrasing(rng)
    for _ in range(rng.randint(16, 26)):
        phrasing = base_phrasing(rng) if rng.random() < 0.3 else phrasing
        tool, bag = rng.choice(list(zip(tools, bags)))
        if stranger := rng.random() < 0.06:      # for no tool here
            tool, bag = replace(tool, name="", intents=[[rng.choice(verbs), base_word(rng), base_word(rng)], []]), set()
        (verb, *rest), tail = tool.intents
        first, *others = rng.choices([[verb, *rest], [verb, rest[-1]], [rng.choice(verbs), *rest], [rng.choice(verbs), rest[-1]],
                                      [*rest, *tail], [verb, base_word(rng), rest[-1]], [verb, rest[0]]],
                                     [35, 15, 15, 10, 10, 8, 7])[0]
        words = {*" ".join([first, *others]).split()}
        shared = max(len(words & other) for other in bags if other is not bag)
        if shared and stranger or shared >= len(words & bag) and not stranger:
            continue
        asked = replace(tool, intents=[f"{first} {article()}{' '.join(others)}" if others else first])
        needed = next((p.name for p in tool.params if p.required and p.kind != "bool"), None) if rng.random() < 0.15 else None
        wish = make_wish(rng, asked, phrasing, {"literal": 1}, lambda kind: base_string(rng, 0.2, kind), today, drop=needed)
        segments.append((turn("user", say(rng, wish, phrasing)) + OPEN, 0, False))
        answer = NO_TOOL if stranger else ASK.format(name=words_of(needed)) if needed else format_calls([Call(tool.name, wish.args)])
        segments.append((answer + END, len(segments) - 1, True))
    return segments


def working_document(rng, careless=False):
    """A training document of the base in which only the values are hard: one or two tools with few parameters, and many short
    requests whose dates, times, numbers and options are to be worked out. careless: as in base_document. Returns a tree, as there."""
    tools, today = [], (rng.randint(2023, 2029), rng.randint(1, 12), rng.randint(1, 22))
    for tool in base_tools(rng, rng.choice([1, 1, 2]), 0.2):
        params, size = twin_params(rng) if rng.random() < 0.2 else [], rng.randint(1, 3)
        while len(params) < size:
            p = base_param(rng, [p.name for p in params], 0.2)
            if len(forms_of(p.kind)) > 1 or rng.random() < 0.1:
                params.append(replace(p, required=True, default=None) if rng.random() < 0.5 else p)
        tools.append(replace(tool, params=sorted(params, key=lambda p: not p.required), returns=""))
    segments = [(turn("system", system_text([tool.schema() for tool in tools], today)), -1, False)]
    strings = lambda kind: base_string(rng, 0.2, kind)
    for n in range(rng.randint(16, 26)):
        if n % 3 == 0:
            phrasing = base_phrasing(rng)
        wish = make_wish(rng, rng.choice(tools), phrasing, {**BASE_FORMS, "literal": 0.7}, strings, today)
        segments.append((turn("user", say(rng, wish, phrasing)) + OPEN, 0, False))
        segments.append((format_calls([Call(wish.tool.name, as_written(rng, wish, today, careless))]) + END, len(segments) - 1, True))
    return segments


def training_document(rng, hardest=1.0, careless=False):
    """Any of the three kinds of documents, in the shares in which the base is trained on them: in 25% only the tool is hard,
    in 12% (times `hardest`) only the values. hardest, careless and what is returned: as in base_document."""
    kind = rng.random()
    if kind < 0.25:
        return choosing_document(rng)
    return working_document(rng, careless) if kind < 0.25 + 0.12 * hardest else base_document(rng, hardest, careless)
