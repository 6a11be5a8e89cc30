#!/usr/bin/env bash
# From a fresh clone to a student that beats its own baseline: environment, data, training, table.
#   bash tools/quickstart.sh               one seed, within 12 minutes on 2 cores
#   bash tools/quickstart.sh --seeds 3     the measurement of docs/results/quickstart.md
#   bash tools/quickstart.sh --help
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/environment.sh onedl
exec python tools/quickstart.py "$@"
