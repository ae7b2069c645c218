"""The name under which DeepCluster-v2's published commands start: `main_swav.py --method deepcluster-v2`."""

import sys

import main_swav
from src import cli

if __name__ == "__main__":
    cli.run(lambda _: main_swav.main(["--method", "deepcluster-v2", *sys.argv[1:]]))
