#!/usr/bin/env bash
# Installs Slurm from Debian's or Ubuntu's packages, where it is missing.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"
missing=()
for pair in slurmctld:slurmctld slurmd:slurmd sbatch:slurm-client munged:munge ip:iproute2; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
done
((${#missing[@]})) || exit 0
if ! command -v apt-get >/dev/null || [[ $(id -u) != 0 ]]; then
    echo "install.sh: ${missing[*]} missing; install what has slurmctld, slurmd, sbatch, munged and ip" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
# The packages' own services are not needed here, and may not be started in a container.
apt-get install -y -q --no-install-recommends "${missing[@]}"
