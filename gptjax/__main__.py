import sys

from gptjax.main import main

sys.exit(main(sys.argv))
