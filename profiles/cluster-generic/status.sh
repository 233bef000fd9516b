#!/bin/sh
# State of a PBS job in the words that Snakemake knows. `qstat -x` remembers finished jobs.
state=$(qstat -xf "$1" | awk '$1 == "job_state" { state = $3 } $1 == "Exit_status" { code = $3 }
    END { print state code }')
case $state in
F0) echo success ;;
F*) echo failed ;;
*) echo running ;;
esac
