import sys

from loadtest.cli import main, stop_cleanly

stop_cleanly()
sys.exit(main())
