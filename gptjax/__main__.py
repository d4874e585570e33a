import sys

from gptjax import memory
from gptjax.main import main

memory.use_large_pages()
sys.exit(main(sys.argv))
