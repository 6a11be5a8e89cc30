#!/usr/bin/env bash
# From a fresh clone to a student that beats its own baseline: environment, data, training, table.
#   bash examples/quickstart/quickstart.sh            one seed, within 12 minutes on 2 cores
#   bash examples/quickstart/quickstart.sh --methods all --seeds 3       as in docs/results/
#   bash examples/quickstart/quickstart.sh --help
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source tools/environment.sh onedl
exec python -m examples.quickstart "$@"
