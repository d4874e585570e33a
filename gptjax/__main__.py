import sys

from gptjax import memory

memory.use_large_pages()  # first: what was imported would be imported again

from gptjax.main import main  # noqa: E402

sys.exit(main(sys.argv))
