"""The cleaning step that turns HTML to text."""

import html
import re


def html_to_text(text: str, options) -> str:
    """Renders HTML as the text that a browser shows; other text is kept.

        '<p>one\\ntwo</p><p>R&amp;D</p>' → 'one two\\n\\nR&D'
        'i <3 the <b> tag &amp; you' → 'i <3 the <b> tag & you'

    Text counts as HTML if it has a closing tag of HTML ('</p>'), an element that is
    never closed ('<br>', '<img src=…>'), a comment or a doctype. In other text only
    character references ('&amp;', '&#39;') are replaced. Line breaks become spaces, as
    in a browser, only if the text begins with a tag: a chat in which somebody writes
    '<em>' keeps its lines. Do not use this step on source code.
    """
    if '<' in text and _IS_HTML.search(text):
        source = _NOT_A_TAG.sub('&lt;', text)
        for opening, closing in _SWALLOWING.items():
            if closing not in text.lower():  # it would hide the rest of the text
                source = re.sub(f'<(?={opening})', '&lt;', source, flags=re.I)
        if not _IS_PAGE.match(source):
            source = source.replace('\n', _LINE)
        return _render(source)
    if '&' in text:
        return _REFERENCE.sub(lambda match: html.unescape(match[0]), text)
    return text


# Elements on separate lines, elements within a line, elements that are never closed,
# and elements whose text a browser does not show.
_BLOCK = (
    'address|article|aside|blockquote|body|caption|center|dd|details|div|dl|dt|'
    'fieldset|figcaption|figure|footer|form|h[1-6]|head|header|html|li|main|nav|ol|p|'
    'pre|section|summary|table|tbody|tfoot|thead|title|tr|ul'
)
_INLINE = (
    'a|abbr|b|bdi|bdo|big|button|canvas|cite|code|del|dfn|em|font|i|iframe|ins|kbd|'
    'label|mark|math|noscript|object|option|q|s|samp|script|select|small|span|strike|'
    'strong|style|sub|sup|svg|td|template|textarea|th|time|tt|u|var|video'
)
_VOID = 'area|base|br|col|embed|hr|img|input|link|meta|source|track|wbr'
_HIDDEN = 'head,script,style,template,noscript,svg,math,iframe,object,canvas'
_SWALLOWING = {
    f'{name}\\b': f'</{name}' for name in _HIDDEN.split(',') + ['textarea', 'title']
} | {'!--': '-->'}
_PARAGRAPH = 'p,h1,h2,h3,h4,h5,h6,table,ul,ol,dl,blockquote,pre'
_LINES = 'address,article,aside,caption,center,dd,details,div,dt,fieldset,' + (
    'figcaption,figure,footer,form,header,li,main,nav,section,summary,tr'
)
_IS_HTML = re.compile(
    rf'</(?:{_BLOCK}|{_INLINE})\s*>|<[bh]r\s*/?>|<(?:{_VOID})\s[^<>=]+=[^<>]*>'
    r'|<!doctype\s+html|<!--.*?-->',
    re.IGNORECASE | re.DOTALL,
)
_IS_PAGE = re.compile(rf'\s*<(?:(?:{_BLOCK}|{_VOID})\b|!)', re.IGNORECASE)
_NOT_A_TAG = re.compile(
    rf'<(?!/?(?:{_BLOCK}|{_INLINE}|{_VOID})[\s/>]|!--|!doctype)', re.IGNORECASE
)
_REFERENCE = re.compile(r'&(?:[a-zA-Z]{2,31}|#\d{1,7}|#[xX][\da-fA-F]{1,6});')

# In the tree '\n' is a blank, so code points without a character mark line breaks.
_LINE, _KEPT_LINE, _KEPT_BLANK, _CELL = '\ufdd0', '\ufdd1', '\ufdd2', '\ufdd3'
_EDGE, _PARAGRAPH_EDGE = '\ufdd4', '\ufdd5'  # where blocks begin and end
_EDGES = re.compile(f' *[{_EDGE}{_PARAGRAPH_EDGE}][ {_EDGE}{_PARAGRAPH_EDGE}]*')


def _render(source: str) -> str:
    """Renders HTML: an empty line between paragraphs, a tab between cells of a row."""
    from selectolax.lexbor import LexborHTMLParser

    tree = LexborHTMLParser(source)
    for node in tree.css(_HIDDEN):
        node.decompose()
    for node in tree.css('pre'):
        text = node.text().strip('\n' + _LINE)
        text = text.replace('\n', _KEPT_LINE).replace(' ', _KEPT_BLANK)
        node.replace_with(_PARAGRAPH_EDGE + text + _PARAGRAPH_EDGE)
    for node in tree.css('br,hr'):
        node.replace_with(_LINE)
    for node in tree.css('td,th'):
        node.insert_after(_CELL)
    for selector, edge in ((_PARAGRAPH, _PARAGRAPH_EDGE), (_LINES, _EDGE)):
        for node in tree.css(selector):
            node.insert_before(edge)
            node.insert_after(edge)
    text = re.sub(r'[ \t\r\n]+', ' ', tree.root.text())
    text = _EDGES.sub(lambda run: _LINE * (1 + (_PARAGRAPH_EDGE in run[0])), text)
    lines = (line.strip(' ' + _CELL) for line in text.split(_LINE))
    text = re.sub(r'\n{3,}', '\n\n', '\n'.join(lines)).strip()
    text = re.sub(f' ?{_CELL} ?', '\t', text)
    return text.replace(_KEPT_LINE, '\n').replace(_KEPT_BLANK, ' ')
