"""Made-up texts with personal data, labelled: the set that measures masking.

A text holds one value, made from a form such as '+44 20 ???? ????', within sentences.
The label is its span of characters. Values of some kinds are to be masked; look-alikes
such as prices and versions are to stay. No value belongs to anybody, but by chance.

Forms and sentences are in two splits. Whoever changes masking.py looks at the split
'development'; the figures that count are those of 'held out'.
"""

import random
import re
import uuid
from collections.abc import Iterator
from typing import NamedTuple

SPLITS = ('development', 'held out')
MASKED = ('email', 'phone', 'handle', 'id')  # the kinds to be masked


class Labelled(NamedTuple):
    """A text with one value, text[start:end], of a kind and in a form."""

    text: str
    start: int
    end: int
    kind: str
    form: str


# '?' is a digit, '%' one of 2 to 9, '~' a hexadecimal digit; {words} are made below.
FORMS = {
    'development': dict(
        email=(
            *('{first}.{last}@{domain}', '{first}??@{domain}', '{first}@mail.{domain}'),
            *('{first}+{word}@{domain}', "{first}.o'{last}@{domain}"),
            *(
                'mailto:{first}@{domain}',
                '{first} at gmail dot com',
                '{last}[at]gmx.de',
            ),
        ),
        phone=(
            *('(%??) %??-????', '%??-%??-????', '%??.%??.????', '%??%??%???'),
            *('1-%??-%??-????', '+1 %?? %?? ????', '+44 20 ???? ????'),
            *('+49 30 ??????', '0049 30 ??????', '030 / ??????', '030 ??????'),
            *('06 ?? ?? ?? ??', '+33 6 ?? ?? ?? ??'),
        ),
        handle=(
            *('@{first}_{last}', '@{first}??', 'u/{first}_??', '{first}#1??%'),
            '@{first}@{domain}',
        ),
        id=(
            *('{uuid}', '~~~~~~~~a~~~~~~~~~~~~~~~~1~~~~~~', '<@U024{ID}H>'),
            *('%?????????????????', '4??? ???? ???? ????', '%??-??-????'),
        ),
        price=('$1,2??.??', '$2000000', '€ 12.5??,00', '1 2?? 000 yen'),
        date=('20??-05-1?', '01/0%/2018', '2018-05-02 1?:38:15', '1910-19%?'),
        version=('v1.%.3.?', '2.1?.0', '192.168.1??.2??'),
        isbn=('978-0-306-4061%-?',),
        score=('21-1?', '6-4 7-5 6-%'),
        time=('1?:38:15', '@3pm', '@ 5pm', '@ 1?:30'),
        number=('3.14159265358979?', '4039029304?3', '1000000', '0x7fff%???', '3?%'),
        other=('!@#$', 'a < b@', 'Issue#12%?', 'yahoo.com', 'either/or'),
    ),
    'held out': dict(
        email=(
            *('{first}-{last}@{word}.co.uk', '{last}@{word}.museum', 'jörg@{domain}'),
            *(
                '{FIRST}.{LAST}@{DOMAIN}',
                '{first}_%?@{word}-{last}.io',
                '{first}@müller.de',
            ),
            *('{first} AT yahoo DOT com', '{first}.{last} (at) gmail (dot) com'),
            *('{first} at {word} dot org', '{first}@{word} dot com'),
        ),
        phone=(
            *('+34 6?? ??? ???', '6?? ??? ???', '+39 3?? ??? ????', '3%? ??? ????'),
            *('+61 4?? ??? ???', '04?? ??? ???', '+91 9???? ?????', '9???? ?????'),
            *(
                '+55 11 9????-????',
                '(11) 9????-????',
                '+81 3 ???? ????',
                '03-????-????',
            ),
            *('090-????-????', '+48 ??? ??? ???', '079 ??? ?? ??', '07??? ??????'),
            *('020 7??? ????', '06-%???????', '070-??? ?? ??', '+86 138 ???? ????'),
            *('138 ???? ????', '8 (9??) ???-??-??', '0170 ???????', '0151/????????'),
            *('+1-%??-%??-????', '+1 (%??) %??-????', '%?? %?? ????', '%??-%??? x1??'),
        ),
        handle=(
            *('@{first}.{last}.??', '@{word}{word}_', '/u/{first}??', '@{First}{Last}'),
            *('{first}.{last}#%??%', 'IG: {first}_{last}', 'twitter.com/{first}_??'),
        ),
        id=(
            *(
                '{UUID}',
                '~~~~~~~~~~a~~~~~~~~~~1~~~~~~~~~~~~~~~~~~',
                '<@!%????????????????>',
            ),
            *('<@&%????????????????>', '%???????????????', '4???-????-????-????'),
            *('3%?? ?????? ?????', 'DE%? ???? ???? ???? ???? ??', '%?? ?? ????'),
            *('U024{ID}H', 'user_8~~~~~~~~~~~'),
        ),
        price=('US$ 30000??', '£1000000', '12,500.?? EUR', '1.250.0?? kr', '30000%??'),
        date=('%. 5. 201?', '2018050%', '05-1%-2018', '1999–200%', '2019.0%.1?'),
        version=('10.0.19%??.38??', '2026.1%.0rc1', 'python3.1?', '1.0.0-beta.%'),
        isbn=(
            '0-306-4%615-?',
            '97803064%615?',
            'ISSN 2%49-36??',
            '10.10%8/s415??-020-2649-2',
        ),
        score=('10%-99', '3:%', '1-0 2-1 3-%', '15-40'),
        time=('1?.38', '@ 7:1? pm', '@7', '@noon', '2018-05-02T1?:00:00Z'),
        number=(
            '52.5200??, 13.4049??',
            '1e-1?',
            '6.02214076e23',
            '1,234,5%7',
            '+1 000 0??',
        ),
        code=(
            '@property',
            '@dataclass(frozen=True)',
            '@app.route("/%")',
            '@param name',
        ),
        other=('@ home', 'hi@', 'C#', 'hotmail.com', 'and/or', 'PR#10%?', 'AC/DC'),
    ),
}
SENTENCES = {
    'development': {
        'masked': ('you can find me here: {}', '{} is mine', 'write to {}, please.'),
        'phone': ('call me at {}', 'my number is {}.', 'it rings on {} all day'),
        'kept': ('it says {} there', 'we had {} in the end.', '{} was what I saw'),
    },
    'held out': {
        'masked': ('just use {} for that!', 'Try {} (she answers).', 'ok so {} then'),
        'phone': ('Tel. {}', 'text {} when you land', 'ring {} and ask for the boss'),
        'kept': ('The label reads {}.', 'I remember {} well', 'so, {}? really'),
    },
}
AROUND = (
    *('hey how are you', 'I like the sea.', 'no way!', 'We met in spring.', ''),
    *('Do you cook?', 'the dog barked', 'That is nice to hear.'),
)
FIRST = ('anna', 'bob', 'carla', 'dmitri', 'eve', 'farid', 'gita', 'hugo', 'ines')
LAST = ('moreno', 'smith', 'okafor', 'tanaka', 'weber', 'rossi', 'dubois', 'novak')
WORD = ('river', 'stone', 'apple', 'cloud', 'tiger', 'lemon', 'piano', 'comet')
ENDINGS = ('org', 'com', 'net', 'de')


def make_labelled_texts(split: str, per_form: int, seed: int = 0) -> Iterator[Labelled]:
    """Yields `per_form` texts of each form of a split; equal seeds give equal texts."""
    for kind, forms in FORMS[split].items():
        for form in forms:
            draw = random.Random(f'{seed} {split} {kind} {form}')
            sentences = SENTENCES[split]
            chosen = (
                sentences.get(kind)
                or (sentences['masked' if kind in MASKED else 'kept'])
            )
            for _ in range(per_form):
                value = _fill(form, draw)
                before, after = draw.choice(chosen).split('{}')
                around = [draw.choice(AROUND) for _ in range(2)]
                start = f'{around[0]}\n{before}'.lstrip('\n')
                text = f'{start}{value}{after}\n{around[1]}'.rstrip('\n')
                end = len(start) + len(value)
                yield Labelled(text, len(start), end, kind, form)


def _fill(form: str, draw: random.Random) -> str:
    """A value in a form, '(%??) %??-????' → '(808) 782-1557'."""
    first, last, word = map(draw.choice, (FIRST, LAST, WORD))
    domain = f'{draw.choice(WORD)}.{draw.choice(ENDINGS)}'
    if '{' in form:
        identity = str(uuid.UUID(int=draw.getrandbits(128), version=4))
        words = dict(first=first, last=last, word=word, domain=domain, uuid=identity)
        words |= {name.upper(): value.upper() for name, value in words.items()}
        words |= dict(First=first.title(), Last=last.title())
        words['ID'] = ''.join(draw.choices('ABCDEFGHJK23456789', k=4))
        form = form.format(**words)
    digits = {'?': '0123456789', '%': '23456789', '~': '0123456789abcdef'}
    return re.sub('[?%~]', lambda match: draw.choice(digits[match[0]]), form)
