import sys

from gptjax import memory
from gptjax.main import main

memory.keep_freed()
sys.exit(main(sys.argv))
