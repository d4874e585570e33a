"""Cleaning steps that mask contact details and account names.

They look at the form of words and numbers only. In doubt a number is kept, so that
years and prices survive. They do not find people's names, postal addresses, handles
without '@', numbers spelled in words, and links to profiles.
"""

import re


def mask_emails(text: str, options) -> str:
    """Masks e-mail addresses: 'ann@x.org, bo at gmail dot com' → '[email], [email]'"""
    if '@' in text:
        text = _EMAIL.sub('[email]', text)
    lowered = text.lower()
    if any(host in lowered for host in _MAIL_HOSTS + _OTHER_HOSTS):
        text = _SPOKEN_EMAIL.sub('[email]', text)
    return text


_EMAIL = re.compile(
    r"(?:mailto:)?(?<![\w.+-])\w[\w.+'-]{0,63}@(?:[\w-]{1,63}\.){1,8}[^\W\d]{2,24}\b"
)
_MAIL_HOSTS = ('gmail', 'googlemail', 'hotmail', 'icloud', 'gmx', 'protonmail')
_OTHER_HOSTS = ('yahoo', 'outlook', 'aol')  # 'look at yahoo.com' is not an address
_SPOKEN_EMAIL = re.compile(
    r'\b[\w.+-]{2,64}\s?(?:\bat\b|[\[(]at[\])]|@)\s?'
    rf'(?:(?:{"|".join(_MAIL_HOSTS)})\s?(?:\bdot\b|[\[(]dot[\])]|\.)'
    rf'|(?:{"|".join(_OTHER_HOSTS)})\s?(?:\bdot\b|[\[(]dot[\])]))'
    r'\s?[a-z]{2,3}\b',
    re.IGNORECASE,
)


def mask_phone_numbers(text: str, options) -> str:
    """Masks telephone numbers.

        'call 782-1557 or +44 20 7946 0958' → 'call [phone] or [phone]'

    These forms are masked: international ('+44 …', '0049 …'); North American with ten
    digits ('(808) 782-1557', '808.782.1557', '8087821557'); a leading zero and groups
    ('030 / 901820', '06 12 34 56 78'); and short ('782-1557') right after a word such
    as 'call' or 'number'. Years, prices, scores, dates, decimals and strings of zeros
    and ones are kept.
    """
    if not _SEVEN_DIGITS.search(text):
        return text
    for pattern in _PHONES:
        text = pattern.sub('[phone]', text)
    return _PHONE_AFTER_WORD.sub(r'\1[phone]', text)


_SEVEN_DIGITS = re.compile(r'\d(?:[ .()/-]{0,3}\d){6}')
_BEFORE = r'(?<![\w.,/$€£#-])'  # not within a longer number, a price or a word
_AFTER = r'(?![\w/%-]|[.,]\d)'
_PHONES = tuple(
    re.compile(rf'{_BEFORE}(?:{form}){_AFTER}')
    for form in (
        # international
        r'(?![01]+\b)(?:\+|00)[1-9]\d{0,2}(?:[ .()/-]{0,2}\d){7,12}',
        # North American: area and exchange begin with 2 to 9
        r'(?:1[ .-]?)?(?:\([2-9]\d\d\) ?|[2-9]\d\d[ .-]?)[2-9]\d\d[ .-]?\d{4}',
        # French: five pairs
        r'(?!01[ .]02)0[1-9](?:[ .]\d\d){4}',
        # elsewhere: an area code, then two or three groups
        r'0[1-9]\d{1,4} ?[ /-] ?\d{3,4}(?:[ -]?\d{2,4}){1,2}',
    )
)
_PHONE_AFTER_WORD = re.compile(
    r'(\b(?:call|text|phone|tel|telephone|cell|mobile|whatsapp|fax|number|digits)\b'
    r'(?:[ :.#]+(?:me|at|on|is|us|no|number)\b){0,3}[ :.#]+)'
    rf'(?:\d{{3}}[ .-]\d{{4}}|\d{{10,12}}){_AFTER}',
    re.IGNORECASE,
)


def mask_handles(text: str, options) -> str:
    """Masks account names: '@ann @ann@a.org u/ann' → '[handle] [handle] [handle]'

    Any word right after '@' is masked, so do not use this step on source code
    ('@property').
    """
    if '@' in text:
        text = _HANDLE.sub('[handle]', text)
    if 'u/' in text:
        text = _REDDIT.sub('[handle]', text)
    if '#' in text:
        text = _DISCORD.sub('[handle]', text)
    return text


_HANDLE = re.compile(
    r'(?<![\w@])@(?!\d+(?:[:.]\d+)? ?(?:am|pm|h)?\b)'  # '@3pm' is a time
    r'\w(?:[\w.-]{0,62}\w)?(?:@(?:[\w-]+\.)+[a-z]{2,24})?'
)
_REDDIT = re.compile(r'(?<![\w/])/?u/[\w-]{3,20}\b')
_DISCORD = re.compile(
    r'(?<![\w#])(?!(?:issue|pr|bug|ticket|order|case|item|apt|room|page|line)#)'
    r'[^\W\d][\w.]{1,31}#\d{4}\b',
    re.IGNORECASE,
)


def mask_user_ids(text: str, options) -> str:
    """Masks ids: 'by <@U024BE7LH>, card 4111 1111 1111 1111' → 'by [id], card [id]'

    Masked are UUIDs; hexadecimal strings of 16 digits or more with a letter; numbers
    of 15 to 20 digits (but not of zeros and ones only, which are jokes in binary);
    mentions as chat programs write them; and numbers in the form of a payment card or
    a US social security number.
    """
    if '<@' in text:
        text = _MENTION.sub('[id]', text)
    if _DIGITS.search(text):
        text = _ID.sub('[id]', text)
    return text


_DIGITS = re.compile(r'\d[\da-fA-F-]{3}')
_MENTION = re.compile(r'<@[!&]?[A-Z0-9]{6,20}(?:\|[^<>\n]{1,40})?>')
_ID = re.compile(
    r'(?<![\w.,-])(?:'
    r'[\da-f]{8}-[\da-f]{4}-[\da-f]{4}-[\da-f]{4}-[\da-f]{12}'
    r'|(?=[a-f]*\d)(?=\d*[a-f])[\da-f]{16,128}'
    r'|(?![01]+\b)\d{15,20}'
    r'|\d{4}([ -])\d{4}\1\d{4}\1\d{4}'
    r'|\d{3}-\d{2}-\d{4}'
    r')(?![\w-]|[.,]\d)',
    re.IGNORECASE,
)
