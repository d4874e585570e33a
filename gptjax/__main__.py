import sys

from gptjax.core import process

process.use_large_pages()  # first: what was imported would be imported again

from gptjax.cli import main  # noqa: E402

sys.exit(main(sys.argv))
