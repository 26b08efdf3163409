# shellcheck shell=bash
# shellcheck disable=SC2034  # what is set here is read there
# What the .sbatch files beside this one share.

# Ends the job as a wrong request, with a sentence.
refuse() {
    echo "$(basename "${file:-job}"): $*" >&2
    exit 2
}

# How srun's tasks reach Python: as they are, or within a container.
task_options=()
task_prefix=()
in_container() { # IMAGE, or nothing
    local image=$1
    [[ -n $image ]] || return 0
    if [[ $image == *.sif ]]; then
        [[ -f $image ]] || refuse "--container names $image, which is not there"
        local nvidia=()
        # Without it there is no driver inside; where there is none outside it only warns.
        if [[ -e /dev/nvidiactl ]]; then nvidia=(--nv); fi
        task_prefix=(apptainer exec "${nvidia[@]}" --bind "$PWD" "$image")
    else
        srun --help | grep -q container-image ||
            refuse "--container $image needs Slurm's pyxis, which is not here; give a .sif file"
        task_options=(--container-image="$image" --container-mounts="$PWD" --container-workdir="$PWD")
    fi
}

code=1
# Runs `ibtrain ARGUMENTS` in every task, passes signals on, and leaves srun's exit code in `code`.
run_tasks() {
    # After the first task has ended the others have 60 s, whatever its exit code: after a crash they
    # wait for it in vain, after an interruption they are about to end too. With --kill-on-bad-exit
    # the latter would be killed, and the job's code would be that of a crash.
    # One SIGINT ends srun; else the first only has it say what its tasks do.
    srun --wait=60 --kill-on-bad-exit=0 --quit-on-interrupt "${task_options[@]}" \
        "${task_prefix[@]}" python -m ibtrain "$@" &
    srun_process=$!
    # Bash runs a trap when the command before it is over, so srun is in the background and waited for;
    # a trap ends the wait, while the tasks are still there, so it is waited for again.
    trap pass_on USR1 TERM
    local waited=127 again=1
    while ((again)); do
        again=0
        wait "$srun_process" && waited=0 || waited=$?
        if ((waited != 127)); then code=$waited; fi
    done
    trap '' USR1 TERM
    # Tasks that were told to stop before they could listen have nothing to save.
    if ((signalled && (code == 138 || code == 143))); then code=3; fi
}

# srun hands the signal to every task.
signalled=0
pass_on() {
    if ((!signalled)); then echo "job $SLURM_JOB_ID is asked to stop; its tasks hear of it"; fi
    signalled=1 again=1
    kill -USR1 "$srun_process" 2>/dev/null || true
}

# Queues this job again. It kills this shell at once, so it comes last.
requeue() {
    local state
    state=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *JobState=\([A-Z_]*\).*/\1/p')
    # A job that was cancelled, or whose time is over, is COMPLETING by now.
    if [[ $state != RUNNING ]]; then
        echo "job $SLURM_JOB_ID is ${state:-not known} and stays so; the same sbatch command goes on" \
            "from the checkpoint"
        return
    fi
    scontrol requeue "$SLURM_JOB_ID" ||
        echo "job $SLURM_JOB_ID could not be queued again (scontrol requeue); the same sbatch" \
            "command goes on from the checkpoint"
}
